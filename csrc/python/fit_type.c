/* _core.Fit: the pass-based solver as a Python object. */
#include "python/common.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    wf_fit *fit; /* NULL after an interrupt that left it to its worker */
    ptrdiff_t p, m, n_rows, n_groups;
    int busy;   /* a call is under way with the GIL released */
    int failed; /* a pass broke off: what is gathered is not whole */
} fit_object;

static wf_module_state *state_of(PyObject *self)
{
    PyObject *module = PyType_GetModule(Py_TYPE(self));
    return module ? wf_state_of(module) : NULL;
}

static int read_loss(const char *name, wf_loss *loss)
{
    if (strcmp(name, "absolute_error") == 0) {
        *loss = WF_ABSOLUTE_ERROR;
    } else if (strcmp(name, "squared_error") == 0) {
        *loss = WF_SQUARED_ERROR;
    } else {
        PyErr_Format(PyExc_ValueError, "loss must be 'absolute_error' or 'squared_error', got '%s'",
                     name);
        return -1;
    }
    return 0;
}

static PyObject *fit_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"p",     "m",   "n_rows",       "loss",      "fit_intercept", "beta",
                            "alpha", "tol", "first_update", "n_threads", "n_here",        NULL};
    Py_ssize_t p, m, n_rows = 0, n_here = -1;
    const char *loss = "absolute_error";
    PyObject *first_update = Py_None;
    wf_fit_options o = {0};
    o.tol = 1e-9;
    o.fit_intercept = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nn|$nspdddOin:Fit", names, &p, &m, &n_rows,
                                     &loss, &o.fit_intercept, &o.beta, &o.alpha, &o.tol,
                                     &first_update, &o.n_threads, &n_here)) {
        return NULL;
    }
    if (p < 1 || m < 1 || n_rows < 1 || p > 20000 || m > 20000) {
        PyErr_Format(PyExc_ValueError,
                     "Fit needs 1 to 20000 inputs, 1 to 20000 targets and at least one row, got "
                     "p=%zd, m=%zd, n_rows=%zd",
                     p, m, n_rows);
        return NULL;
    }
    if (n_here < -1 || n_here > n_rows) {
        PyErr_Format(PyExc_ValueError, "n_here must be at most n_rows, got %zd of %zd", n_here,
                     n_rows);
        return NULL;
    }
    if (read_loss(loss, &o.loss) != 0 || (o.n_threads = wf_threads(o.n_threads)) < 0) {
        return NULL;
    }
    if (!(o.beta >= 0) || !(o.alpha >= 0) || !(o.tol > 0)) {
        PyErr_SetString(PyExc_ValueError,
                        "beta and alpha must not be negative, tol must be positive");
        return NULL;
    }
    if (o.beta > 0) {
        if (!PyArray_Check(first_update) || PyArray_SIZE((PyArrayObject *)first_update) < 1 ||
            m < 2 || o.loss != WF_ABSOLUTE_ERROR) {
            PyErr_SetString(PyExc_ValueError, "beta > 0 needs absolute_error, two targets and "
                                              "first_update for at least one trajectory");
            return NULL;
        }
        o.n_groups = PyArray_SIZE((PyArrayObject *)first_update);
        o.first_update = wf_matrix(first_update, "first_update", -1, o.n_groups);
        if (!o.first_update) {
            return NULL;
        }
        if (o.n_groups > INT32_MAX) {
            PyErr_SetString(PyExc_ValueError,
                            "first_update holds more trajectories than are supported");
            return NULL;
        }
    }
    o.p = p;
    o.m = m;
    o.n_rows = n_rows;
    o.n_here = n_here < 0 ? n_rows : n_here;
    fit_object *self = (fit_object *)PyType_GenericAlloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->p = p;
    self->m = m;
    self->n_rows = n_rows;
    self->n_groups = o.n_groups;
    if (wf_fit_new(&o, &self->fit) != WF_OK) {
        self->fit = NULL;
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void fit_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    wf_fit_free(((fit_object *)object)->fit);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* -1 with an exception set where the solver may not be looked at. */
static int check_usable(const fit_object *self)
{
    if (self->busy || self->failed) {
        PyErr_SetString(PyExc_RuntimeError, self->busy ? "this Fit is in use by another thread"
                                                       : "this Fit has failed and is of no use");
        return -1;
    }
    return 0;
}

static int enter(fit_object *self)
{
    if (check_usable(self) != 0) {
        return -1;
    }
    if (!wf_fit_needs_pass(self->fit)) {
        PyErr_SetString(PyExc_RuntimeError, "this Fit needs no further pass");
        return -1;
    }
    self->busy = 1;
    return 0;
}

/* What a call into the solver came to: None, or the exception. */
static PyObject *outcome(fit_object *self, wf_status status, const wf_fault *fault)
{
    self->failed = status != WF_OK && status != WF_BAD_SEGMENTS; /* which changes nothing */
    return status == WF_OK ? Py_NewRef(Py_None)
                           : wf_raise(state_of((PyObject *)self), status, fault);
}

static PyObject *fit_needs_pass(PyObject *object, PyObject *unused)
{
    (void)unused;
    const fit_object *self = (fit_object *)object;
    return check_usable(self) != 0 ? NULL : PyBool_FromLong(wf_fit_needs_pass(self->fit));
}

/* Trajectories of a segment: one number, an array, or None where the fit has none. */
static int read_group(const fit_object *self, PyObject *group, wf_arrays *arrays,
                      Py_ssize_t *number)
{
    *number = 0;
    if (self->n_groups == 0) {
        return 0;
    }
    if (PyArray_Check(group)) {
        *number = -1;
        return wf_arrays_add_groups(arrays, group);
    }
    *number = PyNumber_AsSsize_t(group, PyExc_OverflowError);
    if (*number == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (*number < 0 || *number >= self->n_groups) {
        PyErr_Format(PyExc_ValueError, "group must be in 0..%zd, got %zd",
                     (Py_ssize_t)self->n_groups - 1, *number);
        return -1;
    }
    return 0;
}

static PyObject *fit_accumulate(PyObject *object, PyObject *args)
{
    fit_object *self = (fit_object *)object;
    PyObject *x, *y, *group = Py_None;
    Py_ssize_t start = -1;
    if (!PyArg_ParseTuple(args, "OO|On:accumulate", &x, &y, &group, &start) || enter(self) != 0) {
        return NULL;
    }
    PyObject *result = NULL;
    wf_arrays arrays = {0};
    Py_ssize_t number;
    if (wf_arrays_add(&arrays, x, "input", 0) != 0) {
        goto done;
    }
    const ptrdiff_t inputs = arrays.table.n_columns;
    if (wf_arrays_add(&arrays, y, "target", 0) != 0) {
        goto done;
    }
    if (inputs != self->p || arrays.table.n_columns - inputs != self->m) {
        PyErr_Format(PyExc_ValueError, "expected %zd inputs and %zd targets, got %zd and %zd",
                     (Py_ssize_t)self->p, (Py_ssize_t)self->m, (Py_ssize_t)inputs,
                     (Py_ssize_t)(arrays.table.n_columns - inputs));
        goto done;
    }
    if (read_group(self, group, &arrays, &number) != 0) {
        goto done;
    }
    wf_fault fault = {0, 0};
    wf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wf_fit_accumulate(self->fit, &arrays.table, number, start, &fault);
    Py_END_ALLOW_THREADS
    result = outcome(self, status, &fault);
done:
    self->busy = 0;
    wf_arrays_release(&arrays);
    return result;
}

static PyObject *fit_export(PyObject *object, PyObject *unused)
{
    (void)unused;
    fit_object *self = (fit_object *)object;
    if (enter(self) != 0) {
        return NULL;
    }
    const wf_fault fault = {0, 0};
    char *data = NULL;
    size_t size = 0;
    wf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wf_fit_export(self->fit, &data, &size);
    Py_END_ALLOW_THREADS
    self->busy = 0;
    PyObject *result = status == WF_OK ? PyBytes_FromStringAndSize(data, (Py_ssize_t)size)
                                       : outcome(self, status, &fault);
    free(data);
    return result;
}

/* The memory of the messages, in `views`, of which *n are to be released whatever comes of it. */
static int view_messages(PyObject *messages, Py_buffer *views, Py_ssize_t *n)
{
    const Py_ssize_t all = PySequence_Size(messages);
    for (*n = 0; *n < all; ++*n) {
        PyObject *message = PySequence_GetItem(messages, *n);
        const int failed = !message || PyObject_GetBuffer(message, &views[*n], PyBUF_SIMPLE) != 0;
        Py_XDECREF(message); /* which the view keeps */
        if (failed) {
            return -1;
        }
    }
    return 0;
}

static PyObject *fit_absorb(PyObject *object, PyObject *given)
{
    fit_object *self = (fit_object *)object;
    PyObject *messages = PySequence_Fast(given, "absorb needs a sequence of what export gave");
    if (!messages) {
        return NULL;
    }
    const size_t all = (size_t)PySequence_Size(messages);
    PyObject *result = NULL;
    Py_ssize_t n = 0;
    Py_buffer *views = malloc((all + 1) * sizeof *views);
    const char **data = malloc((all + 1) * sizeof *data);
    size_t *size = malloc((all + 1) * sizeof *size);
    if (!views || !data || !size) {
        PyErr_NoMemory();
        goto done;
    }
    if (view_messages(messages, views, &n) != 0 || enter(self) != 0) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        data[i] = views[i].buf;
        size[i] = (size_t)views[i].len;
    }
    const wf_fault fault = {0, 0};
    wf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wf_fit_absorb(self->fit, n, data, size);
    Py_END_ALLOW_THREADS
    self->busy = 0;
    result = outcome(self, status, &fault);
done:
    while (n > 0) {
        PyBuffer_Release(&views[--n]);
    }
    free(views);
    free((void *)data);
    free(size);
    Py_DECREF(messages);
    return result;
}

/* Whether the end of a pass takes so little that Ctrl-C can wait for it, and a thread would be most
 * of the time: some 1e9 operations, for the products of a row are made about a hundred times. */
static int is_small(const fit_object *self)
{
    const double q = (double)self->p + 1;
    return (2e3 + (double)self->n_rows) * q * q * (double)self->m < 1e7;
}

static PyObject *fit_advance(PyObject *object, PyObject *unused)
{
    (void)unused;
    fit_object *self = (fit_object *)object;
    if (enter(self) != 0) {
        return NULL;
    }
    const wf_fault fault = {0, 0};
    wf_status status;
    if (is_small(self)) {
        Py_BEGIN_ALLOW_THREADS
        status = wf_fit_advance(self->fit, NULL, NULL);
        Py_END_ALLOW_THREADS
    } else {
        status = wf_advance(&self->fit);
    }
    PyObject *result = outcome(self, status, &fault);
    self->busy = 0;
    return result;
}

static PyObject *fit_result(PyObject *object, PyObject *unused)
{
    (void)unused;
    fit_object *self = (fit_object *)object;
    if (check_usable(self) != 0) {
        return NULL;
    }
    if (wf_fit_needs_pass(self->fit)) {
        PyErr_SetString(PyExc_RuntimeError, "this Fit needs another pass before it has a result");
        return NULL;
    }
    npy_intp shape[2] = {self->m, self->p};
    PyObject *coef = PyArray_SimpleNew(2, shape, NPY_DOUBLE);
    PyObject *intercept = PyArray_SimpleNew(1, shape, NPY_DOUBLE);
    if (!coef || !intercept) {
        Py_XDECREF(coef);
        Py_XDECREF(intercept);
        return NULL;
    }
    npy_intp square[2] = {self->p + 1, self->p + 1};
    PyObject *room = PyArray_SimpleNew(2, square, NPY_DOUBLE);
    if (!room) {
        Py_DECREF(coef);
        Py_DECREF(intercept);
        return NULL;
    }
    const ptrdiff_t n_null = wf_fit_null(self->fit, PyArray_DATA((PyArrayObject *)room));
    PyObject *null = PySequence_GetSlice(room, 0, n_null);
    Py_DECREF(room);
    wf_fit_info info;
    wf_fit_result(self->fit, PyArray_DATA((PyArrayObject *)coef),
                  PyArray_DATA((PyArrayObject *)intercept), &info);
    return Py_BuildValue("{sNsNsNsdsdsnsnsN}", "null", null, "coef", coef, "intercept", intercept,
                         "objective", info.objective, "dual_gap", info.dual_gap, "n_passes",
                         (Py_ssize_t)info.n_passes, "rank", (Py_ssize_t)info.rank, "converged",
                         PyBool_FromLong(info.converged));
}

static PyMethodDef methods[] = {
    {"needs_pass", fit_needs_pass, METH_NOARGS, "needs_pass() -> bool"},
    {"accumulate", fit_accumulate, METH_VARARGS,
     "accumulate(x, y, group=None, start=-1): one segment of a pass, from row `start` on"},
    {"export", fit_export, METH_NOARGS,
     "export() -> bytes: what this process gathered in the pass"},
    {"absorb", fit_absorb, METH_O, "absorb(parts): what all processes gathered, in one order"},
    {"advance", fit_advance, METH_NOARGS, "advance(): ends a pass"},
    {"result", fit_result, METH_NOARGS, "result() -> dict"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Fit(p, m, *, n_rows, loss, fit_intercept=True, beta=0, alpha=0, tol=1e-9, first_update=None, "
     "n_threads=0, n_here=-1)\n\nThe pass-based solver."},
    {Py_tp_new, fit_new},
    {Py_tp_dealloc, fit_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "wfcast._core.Fit",
    .basicsize = sizeof(fit_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

PyObject *wf_fit_type_new(PyObject *module)
{
    return PyType_FromModuleAndSpec(module, &spec, NULL);
}
