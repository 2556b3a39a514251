/* `Seen`: the memory by which readings delivered again are recognised. The same as `_seen_py`. */

#include "native.h"
#include <structmember.h>

#define REMEMBERED 32

typedef struct {
    PyObject_HEAD
    int64_t times[REMEMBERED], keys[REMEMBERED];
    long long floor_ms;
    int next;
} Seen;

static PyObject *
seen_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, ":Seen", names))
        return NULL;
    Seen *self = (Seen *)type->tp_alloc(type, 0);
    if (self != NULL) {
        for (int i = 0; i < REMEMBERED; i++)
            self->times[i] = INT64_MIN;
        self->floor_ms = INT64_MIN;
    }
    return (PyObject *)self;
}

/* The two integers of a call; 0 with an exception. */
static int
two_integers(PyObject *const *args, Py_ssize_t count, int64_t *one, int64_t *other)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "a time and a key are expected");
        return 0;
    }
    *one = PyLong_AsLongLong(args[0]);
    if (*one == -1 && PyErr_Occurred())
        return 0;
    *other = PyLong_AsLongLong(args[1]);
    return *other != -1 || !PyErr_Occurred();
}

static PyObject *
seen_remember(Seen *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t time_ms, key;
    if (!two_integers(args, count, &time_ms, &key))
        return NULL;
    int at = self->next;
    if (self->times[at] > self->floor_ms)
        self->floor_ms = self->times[at];
    self->times[at] = time_ms;
    self->keys[at] = key;
    self->next = (at + 1) % REMEMBERED;
    Py_RETURN_NONE;
}

static PyObject *
seen_holds(Seen *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t time_ms, key;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "holds(time_ms, key)");
        return NULL;
    }
    if (!int64_of(args[0], &time_ms) || !int64_of(args[1], &key))
        Py_RETURN_FALSE; /* what could not be remembered is not held */
    for (int i = 0; i < REMEMBERED; i++)
        if (self->keys[i] == key && self->times[i] == time_ms)
            Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

static PyObject *
seen_holds_key(Seen *self, PyObject *argument)
{
    int64_t key;
    if (!int64_of(argument, &key))
        Py_RETURN_FALSE;
    for (int i = 0; i < REMEMBERED; i++)
        if (self->keys[i] == key && self->times[i] != INT64_MIN)
            Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

static PyObject *
seen_dump(Seen *self, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("(y#y#iL)", (char *)self->times, (Py_ssize_t)sizeof self->times, (char *)self->keys,
                         (Py_ssize_t)sizeof self->keys, self->next, self->floor_ms);
}

static PyObject *
seen_restore(PyTypeObject *type, PyObject *dump)
{
    const char *times, *keys;
    Py_ssize_t times_bytes, keys_bytes;
    int next;
    long long floor_ms;
    PyObject *fields = PySequence_Tuple(dump);
    if (fields == NULL)
        return NULL;
    Seen *self = NULL;
    if (PyArg_ParseTuple(fields, "y#y#iL:restore", &times, &times_bytes, &keys, &keys_bytes, &next, &floor_ms)) {
        if (times_bytes != sizeof self->times || keys_bytes != sizeof self->keys || next < 0 || next >= REMEMBERED)
            PyErr_SetString(PyExc_ValueError, "the dump is of another memory");
        else if ((self = (Seen *)PyObject_CallNoArgs((PyObject *)type)) != NULL) {
            memcpy(self->times, times, sizeof self->times);
            memcpy(self->keys, keys, sizeof self->keys);
            self->next = next;
            self->floor_ms = floor_ms;
        }
    }
    Py_DECREF(fields);
    return (PyObject *)self;
}

static PyMethodDef seen_methods[] = {
    {"remember", (PyCFunction)(void (*)(void))seen_remember, METH_FASTCALL, NULL},
    {"holds", (PyCFunction)(void (*)(void))seen_holds, METH_FASTCALL, NULL},
    {"holds_key", (PyCFunction)seen_holds_key, METH_O, NULL},
    {"dump", (PyCFunction)seen_dump, METH_NOARGS, NULL},
    {"restore", (PyCFunction)seen_restore, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef seen_members[] = {
    {"floor_ms", T_LONGLONG, offsetof(Seen, floor_ms), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject SeenType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sensorium.actors._seen.Seen",
    .tp_basicsize = sizeof(Seen),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = seen_new,
    .tp_methods = seen_methods,
    .tp_members = seen_members,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_seen", .m_size = -1};

PyMODINIT_FUNC
PyInit__seen(void)
{
    if (!native_is_wanted() || PyType_Ready(&SeenType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Seen", (PyObject *)&SeenType) < 0)
        Py_CLEAR(module);
    return module;
}
