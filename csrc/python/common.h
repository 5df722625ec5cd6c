/* Included first by every file of the binding. */
#ifndef WF_PYTHON_COMMON_H
#define WF_PYTHON_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL wfcast_ARRAY_API
#ifndef WF_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "wfcast.h"

typedef struct {
    PyObject *nonfinite; /* exception: (kind, column, row) */
    PyObject *fit_type;
    PyObject *disabled; /* str: the instruction sets that were asked to be off at import */
} wf_module_state;

extern PyModuleDef wf_module;

static inline wf_module_state *wf_state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

/* A table over the arrays of up to three sequences, with references that keep them. */
typedef struct {
    wf_table table;
    PyObject *owned; /* list */
} wf_arrays;

/* Columns from a sequence of float64, float32, float16 or uint16 (bfloat16 bits) arrays. -1 with an
 * exception set. */
int wf_arrays_add(wf_arrays *arrays, PyObject *columns, const char *what, int writable);
/* One int64 array of the columns' shape, as trajectory numbers. */
int wf_arrays_add_groups(wf_arrays *arrays, PyObject *groups);
void wf_arrays_release(wf_arrays *arrays);

/* A C-contiguous float64 array of the given shape (rows < 0: one dimension). NULL with an exception
 * set. */
const double *wf_matrix(PyObject *object, const char *what, ptrdiff_t rows, ptrdiff_t columns);

/* n_threads as given, or for 0 all processors this process may use. -1 with an exception set. */
int wf_threads(int n_threads);

/* Sets the exception for a status other than WF_OK. Always NULL. */
PyObject *wf_raise(const wf_module_state *state, wf_status status, const wf_fault *fault);

/* Ends a pass, and answers signals meanwhile: WF_INTERRUPTED with the handler's exception set. *fit
 * is NULL afterwards if the solver was in a computation that can't be broken off; it is then freed
 * at the end of that. Called with the GIL, which is released meanwhile. */
wf_status wf_advance(wf_fit **fit);

PyObject *wf_fit_type_new(PyObject *module);

#endif
