/* `Panes`: a rolling window's numbers. The same as `_panes_py`, which says what holds. */

#include "panes.h"
#include <structmember.h>

#define MAX_PANES 1000000

static void
clear_cells(Panes *self)
{
    for (Py_ssize_t position = 0; position < self->metrics; position++)
        PyMem_Free(self->cells[position]);
    PyMem_Free(self->cells);
    self->cells = NULL;
    self->metrics = 0;
}

static PyObject *
panes_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)args, (void)keywords;
    Panes *self = (Panes *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->panes = self->slide_ms = 1;
    return (PyObject *)self;
}

static int
panes_init(Panes *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"panes", "slide_ms", NULL};
    Py_ssize_t panes;
    long long slide_ms;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "nL:Panes", names, &panes, &slide_ms))
        return -1;
    if (panes < 1 || panes > MAX_PANES || slide_ms < 1) {
        PyErr_SetString(PyExc_ValueError, "a window has one pane or more, of one millisecond or more");
        return -1;
    }
    clear_cells(self);
    self->panes = panes;
    self->slide_ms = slide_ms;
    self->reached = 0;
    return 0;
}

static void
panes_dealloc(Panes *self)
{
    clear_cells(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Room for so many metrics; -1 with MemoryError. */
static int
grow(Panes *self, Py_ssize_t metrics)
{
    if (metrics <= self->metrics)
        return 0;
    double **cells = PyMem_Realloc(self->cells, (size_t)metrics * sizeof *cells);
    if (cells == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memset(cells + self->metrics, 0, (size_t)(metrics - self->metrics) * sizeof *cells);
    self->cells = cells;
    self->metrics = metrics;
    return 0;
}

static double *
new_cells(const Panes *self)
{
    double *cells = PyMem_Calloc((size_t)cell_count(self), sizeof *cells);
    if (cells == NULL)
        PyErr_NoMemory();
    else
        cells[self->panes * CELLS + CLOSED_BEFORE] = Py_NAN;
    return cells;
}

static void
put(double *pane, double value, double at)
{
    if (pane[COUNT] == 0.0) {
        pane[COUNT] = 1.0;
        pane[SUM] = pane[SQUARES] = 0.0;
        pane[MIN] = pane[MAX] = pane[FIRST] = pane[LAST] = pane[SHIFT] = value;
        pane[FIRST_MS] = pane[LAST_MS] = at;
        return;
    }
    double off = value - pane[SHIFT];
    pane[COUNT] += 1.0;
    pane[SUM] += off;
    pane[SQUARES] += off * off;
    if (value < pane[MIN])
        pane[MIN] = value;
    else if (value > pane[MAX])
        pane[MAX] = value;
    if (at >= pane[LAST_MS]) {
        pane[LAST] = value;
        pane[LAST_MS] = at;
    }
    else if (at < pane[FIRST_MS]) {
        pane[FIRST] = value;
        pane[FIRST_MS] = at;
    }
}

static PyObject *
panes_observe(Panes *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "observe(values, time_ms)");
        return NULL;
    }
    int64_t time_ms = PyLong_AsLongLong(args[1]);
    if (time_ms == -1 && PyErr_Occurred())
        return NULL;
    PyObject *values = PySequence_Fast(args[0], "values are a sequence");
    if (values == NULL)
        return NULL;
    Py_ssize_t size = PySequence_Fast_GET_SIZE(values);
    PyObject **items = PySequence_Fast_ITEMS(values), *result = NULL;
    int64_t pane = floor_div(time_ms, self->slide_ms);
    int closed = self->reached && pane < self->newest;
    if (closed && (uint64_t)self->newest - (uint64_t)pane >= (uint64_t)self->panes)
        goto done;
    panes_move_to(self, pane);
    if (grow(self, size) < 0)
        goto end;
    Py_ssize_t base = base_of(self, pane);
    for (Py_ssize_t position = 0; position < size; position++) {
        if (!PyFloat_CheckExact(items[position]))
            continue;
        double *cells = self->cells[position];
        if (cells == NULL && (cells = self->cells[position] = new_cells(self)) == NULL)
            goto end;
        put(cells + base, PyFloat_AS_DOUBLE(items[position]), (double)time_ms);
        if (closed)
            cells[self->panes * CELLS + CLOSED_BEFORE] = Py_NAN;
    }
done:
    result = Py_NewRef(Py_None);
end:
    Py_DECREF(values);
    return result;
}

static PyObject *
panes_advance(Panes *self, PyObject *time)
{
    int64_t time_ms = PyLong_AsLongLong(time);
    if (time_ms == -1 && PyErr_Occurred())
        return NULL;
    panes_move_to(self, floor_div(time_ms, self->slide_ms));
    Py_RETURN_NONE;
}

static PyObject *
panes_figures(Panes *self, PyObject *argument)
{
    Moments moments;
    Py_ssize_t position = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (position == -1 && PyErr_Occurred())
        return NULL;
    if (!panes_moments(self, position, &moments))
        Py_RETURN_NONE;
    PyObject *count = PyLong_FromDouble(moments.count);
    return count == NULL ? NULL : Py_BuildValue("(Ndd)", count, moments.mean, moments.stddev);
}

static PyObject *
panes_cells(Panes *self, PyObject *argument)
{
    Py_ssize_t position = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (position == -1 && PyErr_Occurred())
        return NULL;
    if (position < 0 || position >= self->metrics || self->cells[position] == NULL)
        Py_RETURN_NONE;
    Py_ssize_t size = self->panes * CELLS;
    PyObject *list = PyList_New(size);
    for (Py_ssize_t i = 0; list != NULL && i < size; i++) {
        PyObject *cell = PyFloat_FromDouble(self->cells[position][i]);
        if (cell == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, cell);
    }
    return list;
}

static PyObject *
panes_dump(Panes *self, PyObject *unused)
{
    (void)unused;
    PyObject *list = PyList_New(self->metrics);
    for (Py_ssize_t position = 0; list != NULL && position < self->metrics; position++) {
        double *cells = self->cells[position];
        PyObject *item = cells == NULL ? Py_NewRef(Py_None)
                                       : PyBytes_FromStringAndSize((char *)cells, cell_count(self) * (Py_ssize_t)sizeof *cells);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, position, item);
    }
    return list;
}

static PyObject *
panes_load(Panes *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "load(newest, dump)");
        return NULL;
    }
    int64_t newest = args[0] == Py_None ? 0 : PyLong_AsLongLong(args[0]);
    if (newest == -1 && PyErr_Occurred())
        return NULL;
    PyObject *dump = PySequence_Fast(args[1], "a dump is a sequence");
    if (dump == NULL)
        return NULL;
    clear_cells(self);
    self->reached = args[0] != Py_None;
    self->newest = newest;
    PyObject *result = NULL;
    if (grow(self, PySequence_Fast_GET_SIZE(dump)) < 0)
        goto end;
    for (Py_ssize_t position = 0; position < self->metrics; position++) {
        PyObject *item = PySequence_Fast_GET_ITEM(dump, position);
        if (item == Py_None)
            continue;
        if (!PyBytes_Check(item) || PyBytes_GET_SIZE(item) != cell_count(self) * (Py_ssize_t)sizeof(double)) {
            PyErr_SetString(PyExc_ValueError, "the dump is of a window with other panes");
            goto end;
        }
        if ((self->cells[position] = new_cells(self)) == NULL)
            goto end;
        memcpy(self->cells[position], PyBytes_AS_STRING(item), (size_t)PyBytes_GET_SIZE(item));
    }
    result = Py_NewRef(Py_None);
end:
    if (result == NULL)
        clear_cells(self);
    Py_DECREF(dump);
    return result;
}

static PyObject *
panes_newest(Panes *self, void *unused)
{
    (void)unused;
    if (!self->reached)
        Py_RETURN_NONE;
    return PyLong_FromLongLong(self->newest);
}

static PyMethodDef panes_methods[] = {
    {"observe", (PyCFunction)(void (*)(void))panes_observe, METH_FASTCALL, NULL},
    {"advance", (PyCFunction)panes_advance, METH_O, NULL},
    {"figures", (PyCFunction)panes_figures, METH_O, NULL},
    {"cells", (PyCFunction)panes_cells, METH_O, NULL},
    {"dump", (PyCFunction)panes_dump, METH_NOARGS, NULL},
    {"load", (PyCFunction)(void (*)(void))panes_load, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef panes_attributes[] = {
    {"newest", (getter)panes_newest, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject PanesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sensorium.actors._panes.Panes",
    .tp_basicsize = sizeof(Panes),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = panes_new,
    .tp_init = (initproc)panes_init,
    .tp_dealloc = (destructor)panes_dealloc,
    .tp_methods = panes_methods,
    .tp_getset = panes_attributes,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_panes", .m_size = -1};

PyMODINIT_FUNC
PyInit__panes(void)
{
    if (!native_is_wanted() || PyType_Ready(&PanesType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Panes", (PyObject *)&PanesType) < 0)
        Py_CLEAR(module);
    return module;
}
