/* Tests of rules, and calling several of them. The same as `_judge_py`, which says what holds. */

#include "panes.h"
#include <structmember.h>

typedef enum { NUMBER_TEST, RANGE_TEST, Z_SCORE_TEST } Kind;
typedef enum { GT, GE, LT, LE, EQ, NE } Operator;
typedef enum { FAILED = -2, CANNOT_TELL = -1, DOES_NOT_HOLD = 0, HOLDS = 1 } Verdict;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Kind kind;
    Operator operator;
    Py_ssize_t position, index;
    double low, high; /* `low` is the limit of those that have one */
    double min_count;
    int inside;
} Test;

static PyObject *str_windows, *str_figures, *str_advance;
static PyTypeObject *panes_type; /* of `_panes`; owned */

/* The element of a list or tuple, borrowed. */
static PyObject *
item(PyObject *sequence, Py_ssize_t position)
{
    if (!PyList_Check(sequence) && !PyTuple_Check(sequence)) {
        PyErr_SetString(PyExc_TypeError, "a list or tuple is expected");
        return NULL;
    }
    if (position >= PySequence_Fast_GET_SIZE(sequence)) {
        PyErr_SetString(PyExc_IndexError, "there is no such position");
        return NULL;
    }
    return PySequence_Fast_GET_ITEM(sequence, position);
}

/* 1 with the moments, 0 without a reading in the window, -1 with an exception. */
static int
moments_of(PyObject *memory, Py_ssize_t index, Py_ssize_t position, Moments *moments)
{
    PyObject *windows = PyObject_GetAttr(memory, str_windows), *window, *number = NULL, *figures = NULL;
    int found = -1;
    if (windows == NULL)
        return -1;
    if ((window = item(windows, index)) == NULL)
        goto end;
    if (PyObject_TypeCheck(window, panes_type)) {
        found = panes_moments((Panes *)window, position, moments);
        goto end;
    }
    if ((number = PyLong_FromSsize_t(position)) == NULL ||
        (figures = PyObject_CallMethodOneArg(window, str_figures, number)) == NULL)
        goto end;
    if (figures == Py_None)
        found = 0;
    else if (PyArg_ParseTuple(figures, "ddd", &moments->count, &moments->mean, &moments->stddev))
        found = 1;
end:
    Py_XDECREF(figures);
    Py_XDECREF(number);
    Py_DECREF(windows);
    return found;
}

static Verdict
compare(Operator operator, double value, double limit)
{
    switch (operator) {
    case GT: return value > limit;
    case GE: return value >= limit;
    case LT: return value < limit;
    case LE: return value <= limit;
    case EQ: return value == limit;
    case NE: return value != limit;
    }
    Py_UNREACHABLE();
}

static Verdict
judge_one(const Test *test, PyObject *values, PyObject *memory)
{
    PyObject *object = item(values, test->position);
    if (object == NULL)
        return FAILED;
    if (object == Py_None)
        return CANNOT_TELL;
    double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred())
        return FAILED;
    if (test->kind == NUMBER_TEST)
        return compare(test->operator, value, test->low);
    if (test->kind == RANGE_TEST)
        return (test->low <= value && value <= test->high) == test->inside;
    Moments moments;
    int found = moments_of(memory, test->index, test->position, &moments);
    if (found < 0)
        return FAILED;
    return found && moments.count >= test->min_count && fabs(value - moments.mean) > test->low * moments.stddev;
}

static PyObject *
as_object(Verdict verdict)
{
    if (verdict == FAILED)
        return NULL;
    return Py_NewRef(verdict == CANNOT_TELL ? Py_None : verdict == HOLDS ? Py_True : Py_False);
}

static PyObject *
test_call(PyObject *self, PyObject *const *args, size_t flags, PyObject *keywords)
{
    if (PyVectorcall_NARGS(flags) != 3 || (keywords != NULL && PyTuple_GET_SIZE(keywords))) {
        PyErr_SetString(PyExc_TypeError, "test(values, time_ms, memory)");
        return NULL;
    }
    return as_object(judge_one((Test *)self, args[0], args[2]));
}

static PyTypeObject TestType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sensorium.actors._judge.Test",
    .tp_basicsize = sizeof(Test),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Test, vectorcall),
};

static Test *
new_test(Kind kind, Py_ssize_t position, Py_ssize_t index)
{
    if (position < 0 || index < 0) {
        PyErr_SetString(PyExc_ValueError, "positions count from 0");
        return NULL;
    }
    Test *test = PyObject_New(Test, &TestType);
    if (test != NULL) {
        test->vectorcall = test_call;
        test->kind = kind;
        test->position = position;
        test->operator = GT;
        test->index = index;
        test->low = test->high = test->min_count = 0.0;
        test->inside = 1;
    }
    return test;
}

static PyObject *
number_test(PyObject *module, PyObject *args)
{
    static const char *const operators[] = {">", ">=", "<", "<=", "==", "!="};
    Py_ssize_t position;
    const char *operator;
    double limit;
    (void)module;
    if (!PyArg_ParseTuple(args, "nsd:number_test", &position, &operator, &limit))
        return NULL;
    for (int i = GT; i <= NE; i++)
        if (strcmp(operator, operators[i]) == 0) {
            Test *test = new_test(NUMBER_TEST, position, 0);
            if (test != NULL) {
                test->operator = (Operator)i;
                test->low = limit;
            }
            return (PyObject *)test;
        }
    PyErr_Format(PyExc_ValueError, "no operator: %s", operator);
    return NULL;
}

static PyObject *
range_test(PyObject *module, PyObject *args)
{
    Py_ssize_t position;
    double low, high;
    int inside;
    (void)module;
    if (!PyArg_ParseTuple(args, "nddp:range_test", &position, &low, &high, &inside))
        return NULL;
    Test *test = new_test(RANGE_TEST, position, 0);
    if (test != NULL) {
        test->low = low;
        test->high = high;
        test->inside = inside;
    }
    return (PyObject *)test;
}

static PyObject *
z_score_test(PyObject *module, PyObject *args)
{
    Py_ssize_t position, index;
    double limit, min_count;
    (void)module;
    if (!PyArg_ParseTuple(args, "nndd:z_score_test", &position, &index, &limit, &min_count))
        return NULL;
    Test *test = new_test(Z_SCORE_TEST, position, index);
    if (test != NULL) {
        test->low = limit;
        test->min_count = min_count;
    }
    return (PyObject *)test;
}

/* Move the memory's windows on to a time; -1 with an exception. */
static int
advance(PyObject *memory, PyObject *time)
{
    PyObject *windows = PyObject_GetAttr(memory, str_windows);
    if (windows == NULL)
        return -1;
    if (!PyTuple_Check(windows)) {
        PyErr_SetString(PyExc_TypeError, "windows are a tuple");
        Py_DECREF(windows);
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyTuple_GET_SIZE(windows); i++) {
        PyObject *window = PyTuple_GET_ITEM(windows, i);
        if (PyObject_TypeCheck(window, panes_type)) {
            int64_t time_ms = PyLong_AsLongLong(time);
            if (time_ms == -1 && PyErr_Occurred())
                result = -1;
            else
                panes_move_to((Panes *)window, floor_div(time_ms, ((Panes *)window)->slide_ms));
        }
        else {
            PyObject *none = PyObject_CallMethodOneArg(window, str_advance, time);
            result = none == NULL ? -1 : 0;
            Py_XDECREF(none);
        }
    }
    Py_DECREF(windows);
    return result;
}

static PyObject *
judge(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 5 || !PyTuple_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "judge(tests: tuple, values, time_ms, memory, every)");
        return NULL;
    }
    PyObject *tests = args[0], *found = NULL;
    int wanted = PyObject_IsTrue(args[4]);
    Py_ssize_t size = PyTuple_GET_SIZE(tests);
    if (wanted < 0 || advance(args[3], args[2]) < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *test = PyTuple_GET_ITEM(tests, i), *verdict;
        if (Py_TYPE(test) == &TestType)
            verdict = as_object(judge_one((Test *)test, args[1], args[3]));
        else
            verdict = PyObject_Vectorcall(test, args + 1, 3, NULL);
        if (verdict == NULL)
            goto failed;
        int holds = PyObject_IsTrue(verdict);
        if (holds < 0) {
            Py_DECREF(verdict);
            goto failed;
        }
        wanted |= holds;
        if (found == NULL && (wanted || verdict == Py_None)) {
            /* None must be told from False only if it comes to a list; until now all were False. */
            if ((found = PyList_New(size)) == NULL) {
                Py_DECREF(verdict);
                return NULL;
            }
            for (Py_ssize_t j = 0; j < size; j++)
                PyList_SET_ITEM(found, j, Py_NewRef(Py_False));
        }
        if (found != NULL)
            PyList_SetItem(found, i, verdict);
        else
            Py_DECREF(verdict);
    }
    if (wanted && found != NULL)
        return found;
    Py_XDECREF(found);
    if (wanted)
        return PyList_New(0); /* there were no tests */
    Py_RETURN_NONE;
failed:
    Py_XDECREF(found);
    return NULL;
}

/* --- an index of tests ------------------------------------------------------------------------------- */

typedef struct {
    double limit;
    int strict;
    Py_ssize_t number; /* of the test */
} Bound;

typedef struct {
    Bound *bounds;
    Py_ssize_t count;
} Bounds;

/* The tests of one metric. `above` holds for values above a bound, which ascend; `below` for values below one,
   which descend: those that hold stand first. `equal` ascends. `others` are called, as `all` are for a NaN. */
typedef struct {
    Py_ssize_t position;
    Bounds above, below, equal, others, all;
} Place;

typedef struct {
    PyObject_HEAD
    PyObject *tests; /* a tuple */
    Place *places;
    Py_ssize_t place_count;
    Py_ssize_t *rest; /* tests of any other kind */
    Py_ssize_t rest_count;
} Index;

static int
put(Bounds *bounds, double limit, int strict, Py_ssize_t number)
{
    /* Room grows by doubling; counts that are powers of two are full. */
    if ((bounds->count & (bounds->count - 1)) == 0) {
        size_t room = bounds->count ? 2 * (size_t)bounds->count : 1;
        Bound *grown = PyMem_Realloc(bounds->bounds, room * sizeof(Bound));
        if (grown == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        bounds->bounds = grown;
    }
    bounds->bounds[bounds->count++] = (Bound){limit, strict, number};
    return 0;
}

static int
ascending(const void *one, const void *other)
{
    const Bound *a = one, *b = other;
    if (a->limit != b->limit)
        return a->limit < b->limit ? -1 : 1;
    return a->strict - b->strict;
}

static int
descending(const void *one, const void *other)
{
    const Bound *a = one, *b = other;
    if (a->limit != b->limit)
        return a->limit > b->limit ? -1 : 1;
    return a->strict - b->strict;
}

static Place *
place_of(Index *self, Py_ssize_t position)
{
    for (Py_ssize_t i = 0; i < self->place_count; i++)
        if (self->places[i].position == position)
            return &self->places[i];
    Place *grown = PyMem_Realloc(self->places, ((size_t)self->place_count + 1) * sizeof(Place));
    if (grown == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    self->places = grown;
    Place *place = &grown[self->place_count++];
    memset(place, 0, sizeof(Place));
    place->position = position;
    return place;
}

/* Put a test where it belongs; -1 with an exception. */
static int
sort_in(Place *place, const Test *test, Py_ssize_t number)
{
    if (put(&place->all, 0.0, 0, number) < 0)
        return -1;
    if (test->kind == NUMBER_TEST && !isnan(test->low))
        switch (test->operator) {
        case GT: return put(&place->above, test->low, 1, number);
        case GE: return put(&place->above, test->low, 0, number);
        case LT: return put(&place->below, test->low, 1, number);
        case LE: return put(&place->below, test->low, 0, number);
        case EQ: return put(&place->equal, test->low, 0, number);
        case NE: break;
        }
    if (test->kind == RANGE_TEST && !test->inside && test->low <= test->high) {
        if (put(&place->above, test->high, 1, number) < 0)
            return -1;
        return put(&place->below, test->low, 1, number);
    }
    return put(&place->others, 0.0, 0, number);
}

static void
index_dealloc(PyObject *object)
{
    Index *self = (Index *)object;
    for (Py_ssize_t i = 0; i < self->place_count; i++) {
        Place *place = &self->places[i];
        PyMem_Free(place->above.bounds);
        PyMem_Free(place->below.bounds);
        PyMem_Free(place->equal.bounds);
        PyMem_Free(place->others.bounds);
        PyMem_Free(place->all.bounds);
    }
    PyMem_Free(self->places);
    PyMem_Free(self->rest);
    Py_XDECREF(self->tests);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *
index_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *tests;
    static char *names[] = {"tests", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!:Index", names, &PyTuple_Type, &tests))
        return NULL;
    Index *self = (Index *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->tests = Py_NewRef(tests);
    Py_ssize_t size = PyTuple_GET_SIZE(tests);
    if ((self->rest = PyMem_Malloc(((size_t)size + 1) * sizeof(Py_ssize_t))) == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t number = 0; number < size; number++) {
        Test *test = (Test *)PyTuple_GET_ITEM(tests, number);
        if (Py_TYPE(test) != &TestType || test->kind == Z_SCORE_TEST) {
            self->rest[self->rest_count++] = number;
            continue;
        }
        Place *place = place_of(self, test->position);
        if (place == NULL || sort_in(place, test, number) < 0)
            goto failed;
    }
    for (Py_ssize_t i = 0; i < self->place_count; i++) {
        Place *place = &self->places[i];
        qsort(place->above.bounds, (size_t)place->above.count, sizeof(Bound), ascending);
        qsort(place->below.bounds, (size_t)place->below.count, sizeof(Bound), descending);
        qsort(place->equal.bounds, (size_t)place->equal.count, sizeof(Bound), ascending);
    }
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

/* Add a place to the list, which is made for the first; -1 with an exception. */
static int
add(PyObject **found, Py_ssize_t number)
{
    PyObject *object = PyLong_FromSsize_t(number);
    if (object == NULL || (*found == NULL && (*found = PyList_New(0)) == NULL)) {
        Py_XDECREF(object);
        return -1;
    }
    int result = PyList_Append(*found, object);
    Py_DECREF(object);
    return result;
}

/* Call each; -1 with an exception. */
static int
call_each(const Index *self, const Bounds *which, PyObject *values, PyObject *memory, PyObject **found)
{
    for (Py_ssize_t i = 0; i < which->count; i++) {
        Py_ssize_t number = which->bounds[i].number;
        Verdict verdict = judge_one((Test *)PyTuple_GET_ITEM(self->tests, number), values, memory);
        if (verdict == FAILED || (verdict == HOLDS && add(found, number) < 0))
            return -1;
    }
    return 0;
}

/* The tests of one metric that hold; -1 with an exception. */
static int
holding_at(const Index *self, const Place *place, PyObject *values, PyObject *memory, PyObject **found)
{
    PyObject *object = item(values, place->position);
    if (object == NULL)
        return -1;
    if (object == Py_None)
        return 0;
    double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(value))
        return call_each(self, &place->all, values, memory, found);
    const Bound *bound = place->above.bounds, *end = bound + place->above.count;
    for (; bound < end && (bound->limit < value || (bound->limit == value && !bound->strict)); bound++)
        if (add(found, bound->number) < 0)
            return -1;
    bound = place->below.bounds;
    end = bound + place->below.count;
    for (; bound < end && (bound->limit > value || (bound->limit == value && !bound->strict)); bound++)
        if (add(found, bound->number) < 0)
            return -1;
    Py_ssize_t low = 0, high = place->equal.count;
    while (low < high) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (place->equal.bounds[middle].limit < value)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < place->equal.count && place->equal.bounds[low].limit == value; low++)
        if (add(found, place->equal.bounds[low].number) < 0)
            return -1;
    return call_each(self, &place->others, values, memory, found);
}

static PyObject *
index_holding(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Index *self = (Index *)object;
    PyObject *found = NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "holding(values, time_ms, memory)");
        return NULL;
    }
    if (advance(args[2], args[1]) < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < self->place_count; i++)
        if (holding_at(self, &self->places[i], args[0], args[2], &found) < 0)
            goto failed;
    for (Py_ssize_t i = 0; i < self->rest_count; i++) {
        PyObject *test = PyTuple_GET_ITEM(self->tests, self->rest[i]);
        int holds;
        if (Py_TYPE(test) == &TestType)
            holds = judge_one((Test *)test, args[0], args[2]);
        else {
            PyObject *verdict = PyObject_Vectorcall(test, args, 3, NULL);
            if (verdict == NULL)
                goto failed;
            holds = PyObject_IsTrue(verdict);
            Py_DECREF(verdict);
            if (holds < 0)
                goto failed;
        }
        if (holds == FAILED || (holds == HOLDS && add(&found, self->rest[i]) < 0))
            goto failed;
    }
    if (found == NULL)
        Py_RETURN_NONE;
    if (PyList_Sort(found) < 0)
        goto failed;
    return found;
failed:
    Py_XDECREF(found);
    return NULL;
}

static PyMethodDef index_methods[] = {
    {"holding", (PyCFunction)(void (*)(void))index_holding, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject IndexType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sensorium.actors._judge.Index",
    .tp_basicsize = sizeof(Index),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = index_new,
    .tp_dealloc = index_dealloc,
    .tp_methods = index_methods,
};

static PyMethodDef methods[] = {
    {"number_test", number_test, METH_VARARGS, NULL},
    {"range_test", range_test, METH_VARARGS, NULL},
    {"z_score_test", z_score_test, METH_VARARGS, NULL},
    {"judge", (PyCFunction)(void (*)(void))judge, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_judge", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__judge(void)
{
    if (!native_is_wanted() || PyType_Ready(&TestType) < 0 || PyType_Ready(&IndexType) < 0 ||
        (str_windows = PyUnicode_InternFromString("windows")) == NULL ||
        (str_figures = PyUnicode_InternFromString("figures")) == NULL ||
        (str_advance = PyUnicode_InternFromString("advance")) == NULL)
        return NULL;
    PyObject *panes = PyImport_ImportModule("sensorium.actors._panes");
    if (panes == NULL)
        return NULL;
    panes_type = (PyTypeObject *)PyObject_GetAttrString(panes, "Panes");
    Py_DECREF(panes);
    if (panes_type == NULL || !PyType_Check((PyObject *)panes_type))
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Index", (PyObject *)&IndexType) < 0)
        Py_CLEAR(module);
    return module;
}
