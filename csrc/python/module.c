/* The extension module wfcast._core: functions, its state, its start. */
#define WF_IMPORTS_NUMPY
#include "python/common.h"

#include <stdlib.h>
#include <string.h>

/* Outputs may be inputs as they are; any other overlap would make the result depend on the order of
 * the sweep. */
static int check_overlap(const wf_table *table, ptrdiff_t p)
{
    for (ptrdiff_t j = p; j < table->n_columns; j++) {
        if (wf_column_overlaps_itself(table, j)) {
            PyErr_Format(PyExc_ValueError,
                         "out %zd is a broadcast or sliding view: its rows share memory",
                         (Py_ssize_t)(j - p));
            return -1;
        }
        for (ptrdiff_t c = 0; c < j; c++) {
            const wf_overlap overlap = wf_column_overlap(table, c, j);
            if (overlap == WF_OVERLAP_NONE || (overlap == WF_OVERLAP_SAME && c < p)) {
                continue;
            }
            PyErr_Format(PyExc_ValueError, "out %zd overlaps %s %zd%s", (Py_ssize_t)(j - p),
                         c < p ? "input" : "out", (Py_ssize_t)(c < p ? c : c - p),
                         c < p ? " in part: pass that input itself, or other memory" : "");
            return -1;
        }
    }
    return 0;
}

static PyObject *core_apply(PyObject *module, PyObject *args)
{
    PyObject *x, *y, *coef_object, *intercept_object;
    int check_finite = 1, n_threads = 0, with_moves = 0;
    if (!PyArg_ParseTuple(args, "OOOO|pip:apply", &x, &y, &coef_object, &intercept_object,
                          &check_finite, &n_threads, &with_moves) ||
        (n_threads = wf_threads(n_threads)) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    wf_arrays arrays = {0};
    if (wf_arrays_add(&arrays, x, "input", 0) != 0) {
        goto done;
    }
    const ptrdiff_t p = arrays.table.n_columns;
    if (wf_arrays_add(&arrays, y, "out", 1) != 0) {
        goto done;
    }
    const ptrdiff_t m = arrays.table.n_columns - p;
    if (p == 0 || m == 0) {
        PyErr_SetString(PyExc_ValueError, "apply needs at least one input and one output");
        goto done;
    }
    if (with_moves && m != 1) {
        PyErr_Format(PyExc_ValueError, "moves are those of one output, not of %zd", (Py_ssize_t)m);
        goto done;
    }
    const double *coef = wf_matrix(coef_object, "coef", m, p);
    const double *intercept = coef ? wf_matrix(intercept_object, "intercept", -1, m) : NULL;
    if (!intercept || check_overlap(&arrays.table, p) != 0) {
        goto done;
    }
    wf_fault fault = {0, 0};
    wf_status status;
    wf_moves moves;
    Py_BEGIN_ALLOW_THREADS
    status = wf_apply(&arrays.table, p, coef, intercept, check_finite, n_threads,
                      with_moves ? &moves : NULL, &fault);
    Py_END_ALLOW_THREADS
    if (status == WF_NONFINITE_OUT) {
        fault.column -= p;
    }
    result = status != WF_OK ? wf_raise(wf_state_of(module), status, &fault)
             : with_moves    ? Py_BuildValue("dd", moves.move_sq, moves.last_sq)
                             : Py_NewRef(Py_None);
done:
    wf_arrays_release(&arrays);
    return result;
}

/* w and its k averages as a table. */
static int add_averages(wf_arrays *arrays, PyObject *w, PyObject *averages, ptrdiff_t k)
{
    PyObject *one = PyTuple_Pack(1, w);
    int status = one ? wf_arrays_add(arrays, one, "tensor", 0) : -1;
    Py_XDECREF(one);
    if (status != 0 || wf_arrays_add(arrays, averages, "average", 1) != 0) {
        return -1;
    }
    if (arrays->table.n_columns != 1 + k) {
        PyErr_Format(PyExc_ValueError, "%zd averages with %zd coefficients",
                     (Py_ssize_t)(arrays->table.n_columns - 1), (Py_ssize_t)k);
        return -1;
    }
    for (ptrdiff_t j = 1; j <= k; j++) {
        if (wf_column_overlap(&arrays->table, 0, j) != WF_OVERLAP_NONE) {
            PyErr_Format(PyExc_ValueError, "average %zd shares memory with its tensor",
                         (Py_ssize_t)(j - 1));
            return -1;
        }
    }
    return check_overlap(&arrays->table, 1);
}

static PyObject *core_blend(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *tensors, *averages, *c_object, *ws = NULL, *lists = NULL, *result = NULL;
    int n_threads = 0;
    wf_arrays *arrays = NULL;
    wf_table *tables = NULL;
    Py_ssize_t n = 0;
    if (!PyArg_ParseTuple(args, "OOO|i:blend", &tensors, &averages, &c_object, &n_threads) ||
        (n_threads = wf_threads(n_threads)) < 0 || !(ws = PySequence_Tuple(tensors)) ||
        !(lists = PySequence_Tuple(averages))) {
        goto done;
    }
    const ptrdiff_t k = PyArray_Check(c_object) ? PyArray_SIZE((PyArrayObject *)c_object) : 0;
    const double *c = wf_matrix(c_object, "c", -1, k);
    if (!c) {
        goto done;
    }
    if (k > WF_MOST_AVERAGES || PyTuple_Size(lists) != PyTuple_Size(ws)) {
        PyErr_Format(PyExc_ValueError,
                     "blend takes up to %d averages, and a sequence of them for each tensor",
                     WF_MOST_AVERAGES);
        goto done;
    }
    n = PyTuple_Size(ws);
    arrays = PyMem_Calloc((size_t)n + 1, sizeof *arrays);
    tables = PyMem_Malloc(((size_t)n + 1) * sizeof *tables);
    if (!arrays || !tables) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (add_averages(&arrays[i], PyTuple_GetItem(ws, i), PyTuple_GetItem(lists, i), k) != 0) {
            goto done;
        }
        tables[i] = arrays[i].table;
    }
    ptrdiff_t nonfinite;
    Py_BEGIN_ALLOW_THREADS
    wf_blend(tables, n, k, c, n_threads, &nonfinite);
    Py_END_ALLOW_THREADS
    result = PyLong_FromSsize_t(nonfinite);
done:
    for (Py_ssize_t i = 0; arrays && i < n; i++) {
        wf_arrays_release(&arrays[i]);
    }
    PyMem_Free(arrays);
    PyMem_Free(tables);
    Py_XDECREF(ws);
    Py_XDECREF(lists);
    return result;
}

/* Error sums of one pair of columns, the GIL released. */
static int pair_errors(PyObject *a, PyObject *b, int n_threads, wf_errors *errors)
{
    int good = -1;
    wf_arrays arrays = {0};
    PyObject *pair = PyTuple_Pack(2, a, b);
    if (!pair || (n_threads = wf_threads(n_threads)) < 0 ||
        wf_arrays_add(&arrays, pair, "column", 0) != 0) {
        goto done;
    }
    wf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wf_error_sums(&arrays.table, n_threads, errors);
    Py_END_ALLOW_THREADS
    if (status == WF_OK) {
        good = 0;
    } else {
        PyErr_NoMemory();
    }
done:
    Py_XDECREF(pair);
    wf_arrays_release(&arrays);
    return good;
}

static PyObject *core_error_sums(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *a, *b;
    int n_threads = 0;
    wf_errors e;
    if (!PyArg_ParseTuple(args, "OO|i:error_sums", &a, &b, &n_threads) ||
        pair_errors(a, b, n_threads, &e) != 0) {
        return NULL;
    }
    return Py_BuildValue("{sLsdsdsdsdsdsL}", "n", (long long)e.n, "sum_abs", e.sum_abs, "sum_sq",
                         e.sum_sq, "max_abs", e.max_abs, "sum_true", e.sum_b, "sum_true_sq",
                         e.sum_b_sq, "n_nonfinite", (long long)e.n_nonfinite);
}

static PyObject *core_update_norm(PyObject *module, PyObject *args)
{
    PyObject *a, *b;
    int n_threads = 0;
    wf_errors e;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO|i:update_norm", &a, &b, &n_threads) ||
        pair_errors(a, b, n_threads, &e) != 0) {
        return NULL;
    }
    if (e.n_nonfinite) {
        PyErr_SetString(PyExc_ValueError, "an update norm of columns that hold NaN or infinity");
        return NULL;
    }
    return PyFloat_FromDouble(e.sum_abs);
}

static PyObject *core_gram(PyObject *module, PyObject *args)
{
    PyObject *x, *y = Py_None, *base = Py_None, *last = NULL, *result = NULL;
    int n_threads = 0;
    wf_arrays arrays = {0};
    if (!PyArg_ParseTuple(args, "O|OiO:gram", &x, &y, &n_threads, &base) ||
        (n_threads = wf_threads(n_threads)) < 0 || wf_arrays_add(&arrays, x, "column", 0) != 0) {
        goto done;
    }
    const ptrdiff_t p = arrays.table.n_columns;
    if (y != Py_None && wf_arrays_add(&arrays, y, "column", 0) != 0) {
        goto done;
    }
    const ptrdiff_t m = y == Py_None ? p : arrays.table.n_columns - p;
    if (p == 0 || m == 0) {
        PyErr_SetString(PyExc_ValueError, "gram needs at least one column on each side");
        goto done;
    }
    if (base != Py_None &&
        (!(last = PyTuple_Pack(1, base)) || wf_arrays_add(&arrays, last, "base", 0) != 0)) {
        goto done;
    }
    npy_intp shape[2] = {p, m};
    result = PyArray_SimpleNew(2, shape, NPY_DOUBLE);
    if (!result) {
        goto done;
    }
    double *out = PyArray_DATA((PyArrayObject *)result);
    wf_fault fault = {0, 0};
    wf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wf_gram(&arrays.table, p, base != Py_None, n_threads, out, &fault);
    Py_END_ALLOW_THREADS
    if (status != WF_OK) {
        Py_DECREF(result);
        result = wf_raise(wf_state_of(module), status, &fault);
    }
done:
    Py_XDECREF(last);
    wf_arrays_release(&arrays);
    return result;
}

static PyObject *core_halves(PyObject *module, PyObject *args)
{
    PyObject *x, *result = NULL;
    Py_ssize_t middle;
    int n_threads = 0;
    wf_arrays arrays = {0};
    if (!PyArg_ParseTuple(args, "On|i:halves", &x, &middle, &n_threads) ||
        (n_threads = wf_threads(n_threads)) < 0 || wf_arrays_add(&arrays, x, "column", 0) != 0) {
        goto done;
    }
    const ptrdiff_t n = arrays.table.n_columns;
    if (middle < 0 || middle >= n) {
        PyErr_Format(PyExc_ValueError, "middle is %zd, expected one of %zd columns", middle,
                     (Py_ssize_t)n);
        goto done;
    }
    npy_intp shape[2] = {n, WF_HALVES};
    result = PyArray_SimpleNew(2, shape, NPY_DOUBLE);
    if (!result) {
        goto done;
    }
    double *out = PyArray_DATA((PyArrayObject *)result);
    wf_fault fault = {0, 0};
    wf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wf_halves(&arrays.table, middle, n_threads, out, &fault);
    Py_END_ALLOW_THREADS
    if (status != WF_OK) {
        Py_DECREF(result);
        result = wf_raise(wf_state_of(module), status, &fault);
    }
done:
    wf_arrays_release(&arrays);
    return result;
}

static PyObject *core_triad(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *out, *a, *b;
    double scalar;
    int n_threads = 0;
    if (!PyArg_ParseTuple(args, "OOOd|i:triad", &out, &a, &b, &scalar, &n_threads) ||
        (n_threads = wf_threads(n_threads)) < 0) {
        return NULL;
    }
    PyObject *all[3] = {out, a, b};
    for (int i = 0; i < 3; i++) {
        PyArrayObject *array = (PyArrayObject *)all[i];
        if (!PyArray_Check(all[i]) || PyArray_TYPE(array) != NPY_FLOAT ||
            !PyArray_ISCARRAY_RO(array) ||
            PyArray_SIZE(array) != PyArray_SIZE((PyArrayObject *)out) ||
            (i == 0 && !PyArray_ISWRITEABLE(array))) {
            PyErr_SetString(PyExc_ValueError,
                            "triad needs three contiguous float32 arrays of one size");
            return NULL;
        }
    }
    float *to = PyArray_DATA((PyArrayObject *)out);
    const float *from = PyArray_DATA((PyArrayObject *)a), *other = PyArray_DATA((PyArrayObject *)b);
    const ptrdiff_t n = PyArray_SIZE((PyArrayObject *)out);
    Py_BEGIN_ALLOW_THREADS
    wf_triad(to, from, other, (float)scalar, n, n_threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *core_config(PyObject *module, PyObject *unused)
{
    (void)unused;
    PyObject *available = PyList_New(0);
    for (const char *const *name = wf_isa_available(); available && *name; name++) {
        PyObject *text = PyUnicode_FromString(*name);
        if (!text || PyList_Append(available, text) != 0) {
            Py_CLEAR(available);
        }
        Py_XDECREF(text);
    }
    if (!available) {
        return NULL;
    }
    return Py_BuildValue("{sssNsOsssi}", "isa", wf_isa(), "available", available, "disabled",
                         wf_state_of(module)->disabled, "blas", wf_blas_config(), "n_threads",
                         wf_cpu_count());
}

static PyObject *core_set_isa(PyObject *module, PyObject *name)
{
    (void)module;
    const char *text = PyUnicode_AsUTF8AndSize(name, NULL);
    if (!text) {
        return NULL;
    }
    if (wf_isa_select(text) != 0) {
        PyErr_Format(PyExc_ValueError, "instruction set '%s' is not available", text);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"apply", core_apply, METH_VARARGS,
     "apply(x, y, coef, intercept, check_finite=True, n_threads=0, moves=False)"},
    {"blend", core_blend, METH_VARARGS, "blend(tensors, averages, c, n_threads=0) -> int"},
    {"error_sums", core_error_sums, METH_VARARGS, "error_sums(pred, true, n_threads=0) -> dict"},
    {"update_norm", core_update_norm, METH_VARARGS, "update_norm(a, b, n_threads=0) -> float"},
    {"gram", core_gram, METH_VARARGS, "gram(x, y=None, n_threads=0, less=None) -> array"},
    {"halves", core_halves, METH_VARARGS, "halves(x, middle, n_threads=0) -> array"},
    {"triad", core_triad, METH_VARARGS, "triad(out, a, b, scalar, n_threads=0)"},
    {"config", core_config, METH_NOARGS, "config() -> dict"},
    {"set_isa", core_set_isa, METH_O, "set_isa(name)"},
    {NULL, NULL, 0, NULL},
};

static int start(PyObject *module)
{
    if (_import_array() < 0) { /* import_array1 would turn Ctrl-C into an ImportError */
        return -1;
    }
    const char *disabled = getenv("WFCAST_DISABLE_CPU_FEATURES");
    wf_setup(disabled);
    wf_module_state *state = wf_state_of(module);
    state->disabled = PyUnicode_DecodeFSDefault(disabled ? disabled : "");
    state->nonfinite = PyErr_NewExceptionWithDoc(
        "wfcast._core.NonFinite", "(kind, column, row) of the first value that is not finite.",
        PyExc_ValueError, NULL);
    state->fit_type = wf_fit_type_new(module);
    if (!state->disabled || !state->nonfinite || !state->fit_type ||
        PyModule_AddObjectRef(module, "NonFinite", state->nonfinite) != 0 ||
        PyModule_AddObjectRef(module, "Fit", state->fit_type) != 0) {
        return -1;
    }
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    wf_module_state *state = wf_state_of(module);
    Py_VISIT(state->nonfinite);
    Py_VISIT(state->fit_type);
    Py_VISIT(state->disabled);
    return 0;
}

static int clear(PyObject *module)
{
    wf_module_state *state = wf_state_of(module);
    Py_CLEAR(state->nonfinite);
    Py_CLEAR(state->fit_type);
    Py_CLEAR(state->disabled);
    return 0;
}

static void release(void *module)
{
    clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, start},
#ifdef Py_mod_multiple_interpreters /* from 3.12 on, and not in the stable ABI of 3.11 */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* as NumPy */
#endif
#ifdef Py_mod_gil                  /* from 3.13 on, likewise */
    {Py_mod_gil, Py_MOD_GIL_USED}, /* a Fit's `busy` is guarded by it */
#endif
    {0, NULL},
};

PyModuleDef wf_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "wfcast._core",
    .m_doc = "The compiled core of wfcast.",
    .m_size = sizeof(wf_module_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = release,
};

__attribute__((visibility("default"))) PyObject *PyInit__core(void)
{
    return PyModuleDef_Init(&wf_module);
}
