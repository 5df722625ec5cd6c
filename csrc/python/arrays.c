/* NumPy arrays as tables of columns, numbers of threads, and statuses as exceptions. */
#include "python/common.h"

#include <string.h>

static int dtype_of(PyArrayObject *array, wf_dtype *dtype)
{
    switch (PyArray_TYPE(array)) {
    case NPY_DOUBLE:
        *dtype = WF_F64;
        return 0;
    case NPY_FLOAT:
        *dtype = WF_F32;
        return 0;
    case NPY_HALF:
        *dtype = WF_F16;
        return 0;
    case NPY_USHORT:
        *dtype = WF_BF16;
        return 0;
    default:
        return -1;
    }
}

/* Shape of the table from its first column; every other must agree. */
static int agree_on_shape(wf_arrays *arrays, PyArrayObject *array, const char *what,
                          ptrdiff_t index)
{
    wf_table *table = &arrays->table;
    const int ndim = PyArray_NDIM(array);
    const npy_intp *shape = PyArray_DIMS(array);
    if (table->n_columns == 0) {
        if (ndim > WF_MAX_DIMS) {
            PyErr_Format(PyExc_ValueError, "%s %zd has %d dimensions, at most %d are supported",
                         what, index, ndim, WF_MAX_DIMS);
            return -1;
        }
        table->ndim = ndim;
        table->n_rows = 1;
        for (int d = 0; d < ndim; d++) {
            table->shape[d] = shape[d];
            if (__builtin_mul_overflow(table->n_rows, shape[d], &table->n_rows) ||
                table->n_rows > PTRDIFF_MAX / 16) {
                PyErr_Format(PyExc_ValueError, "%s %zd has more elements than can be addressed",
                             what, index);
                return -1;
            }
        }
        return 0;
    }
    int same = ndim == table->ndim;
    for (int d = 0; d < ndim && same; d++) {
        same = shape[d] == table->shape[d];
    }
    if (!same) {
        PyErr_Format(
            PyExc_ValueError,
            "%s %zd has another shape than the first column: all columns must have one shape", what,
            index);
        return -1;
    }
    return 0;
}

static int add_array(wf_arrays *arrays, PyObject *object, const char *what, ptrdiff_t index,
                     int writable, int groups)
{
    if (!PyArray_Check(object)) {
        PyObject *name = PyType_GetName(Py_TYPE(object));
        if (name) {
            PyErr_Format(PyExc_TypeError, "%s %zd is a %U, expected a numpy.ndarray", what, index,
                         name);
            Py_DECREF(name);
        }
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    wf_dtype dtype = WF_I64; /* long or long long: two type numbers of one size */
    const int known = groups
                          ? PyTypeNum_ISSIGNED(PyArray_TYPE(array)) && PyArray_ITEMSIZE(array) == 8
                          : dtype_of(array, &dtype) == 0;
    if (!known) {
        PyErr_Format(
            PyExc_TypeError, "%s %zd has dtype %R, expected %s", what, index, PyArray_DESCR(array),
            groups ? "int64" : "float64, float32, float16 or uint16 (the bits of bfloat16)");
        return -1;
    }
    if (!PyArray_ISNOTSWAPPED(array)) {
        PyErr_Format(PyExc_ValueError,
                     "%s %zd has dtype %R in another byte order than this machine's", what, index,
                     PyArray_DESCR(array));
        return -1;
    }
    if (writable && !PyArray_ISWRITEABLE(array)) {
        PyErr_Format(PyExc_ValueError, "%s %zd is read-only", what, index);
        return -1;
    }
    if (agree_on_shape(arrays, array, what, index) != 0 ||
        PyList_Append(arrays->owned, object) != 0) {
        return -1;
    }
    wf_column *column = &arrays->table.columns[arrays->table.n_columns++];
    column->data = PyArray_BYTES(array);
    column->dtype = dtype;
    for (int d = 0; d < arrays->table.ndim; d++) {
        column->strides[d] = PyArray_STRIDES(array)[d];
    }
    return 0;
}

static int make_room(wf_arrays *arrays, Py_ssize_t more)
{
    if (!arrays->owned && !(arrays->owned = PyList_New(0))) {
        return -1;
    }
    const size_t count = (size_t)(arrays->table.n_columns + more);
    wf_column *columns =
        PyMem_Realloc(arrays->table.columns, (count ? count : 1) * sizeof *columns);
    if (!columns) {
        PyErr_NoMemory();
        return -1;
    }
    arrays->table.columns = columns;
    return 0;
}

int wf_arrays_add(wf_arrays *arrays, PyObject *columns, const char *what, int writable)
{
    /* a copy: the list may change while the GIL is released */
    PyObject *all = PySequence_Tuple(columns);
    if (!all) {
        return -1;
    }
    const Py_ssize_t count = PyTuple_Size(all);
    int status = make_room(arrays, count);
    for (Py_ssize_t i = 0; i < count && status == 0; i++) {
        status = add_array(arrays, PyTuple_GetItem(all, i), what, i, writable, 0);
    }
    Py_DECREF(all);
    return status;
}

int wf_arrays_add_groups(wf_arrays *arrays, PyObject *groups)
{
    if (make_room(arrays, 1) != 0) {
        return -1;
    }
    return add_array(arrays, groups, "groups", 0, 0, 1);
}

void wf_arrays_release(wf_arrays *arrays)
{
    PyMem_Free(arrays->table.columns);
    Py_CLEAR(arrays->owned);
}

const double *wf_matrix(PyObject *object, const char *what, ptrdiff_t rows, ptrdiff_t columns)
{
    PyArrayObject *array = (PyArrayObject *)object;
    const int ndim = rows < 0 ? 1 : 2;
    int good = PyArray_Check(object) && PyArray_TYPE(array) == NPY_DOUBLE &&
               PyArray_NDIM(array) == ndim && PyArray_ISCARRAY_RO(array);
    good = good && PyArray_DIM(array, ndim - 1) == columns &&
           (rows < 0 || PyArray_DIM(array, 0) == rows);
    if (!good) {
        if (rows < 0) {
            PyErr_Format(PyExc_ValueError,
                         "%s must be a C-contiguous float64 array of shape (%zd,)", what, columns);
        } else {
            PyErr_Format(PyExc_ValueError,
                         "%s must be a C-contiguous float64 array of shape (%zd, %zd)", what, rows,
                         columns);
        }
        return NULL;
    }
    return PyArray_DATA(array);
}

int wf_threads(int n_threads)
{
    if (n_threads < 0) {
        PyErr_Format(PyExc_ValueError,
                     "n_threads must be positive, or 0 for all processors, got %d", n_threads);
        return -1;
    }
    return n_threads ? n_threads : wf_cpu_count();
}

PyObject *wf_raise(const wf_module_state *state, wf_status status, const wf_fault *fault)
{
    PyObject *detail;
    switch (status) {
    case WF_NONFINITE_IN:
    case WF_NONFINITE_OUT:
        detail = Py_BuildValue("(snn)", status == WF_NONFINITE_IN ? "input" : "output",
                               (Py_ssize_t)fault->column, (Py_ssize_t)fault->row);
        if (detail) {
            PyErr_SetObject(state->nonfinite, detail);
            Py_DECREF(detail);
        }
        break;
    case WF_BAD_GROUP:
        PyErr_Format(PyExc_ValueError, "groups holds a trajectory number outside 0..S-1 at row %zd",
                     (Py_ssize_t)fault->row);
        break;
    case WF_BAD_SEGMENTS:
        PyErr_SetString(PyExc_ValueError, "the segments of a pass do not add up to n_rows");
        break;
    case WF_BAD_MESSAGE:
        PyErr_SetString(PyExc_ValueError,
                        "the parts are not those of one pass of one fit over all n_rows");
        break;
    case WF_INTERRUPTED:
        if (!PyErr_Occurred()) {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
        }
        break;
    default:
        PyErr_NoMemory();
        break;
    }
    return NULL;
}
