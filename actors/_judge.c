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
    if (!native_is_wanted() || PyType_Ready(&TestType) < 0 ||
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
    return PyModule_Create(&definition);
}
