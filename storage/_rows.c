/* Readings as rows of PostgreSQL's binary COPY format: the same as `_rows_py`, which says what holds. */

#include "native.h"
#include <string.h>

#define COLUMNS 9
#define FLOAT8_OID 701
#define EPOCH_2000_MS 946684800000LL
#define FIXED_BYTES 78 /* from the number of columns to the length of the array */
#define ARRAY_START_BYTES 20
#define NUMBER_BYTES 12
#define NULL_BYTES 4
#define TRAILER_BYTES 2

static const char HEADER[] = "PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
#define HEADER_BYTES 19

enum { SHARD, OFFSET, DEVICE, TIME_MS, KEY, FLAGS, METRIC_SET, VALUES, ROW_FIELDS };

static PyObject *str_only_numbers, *str_names, *str_id;

typedef struct {
    char *data;
    size_t used, size;
} Buffer;

/* Room for `more` bytes; NULL with MemoryError. */
static char *
reserve(Buffer *buffer, size_t more)
{
    if (buffer->size - buffer->used < more) {
        size_t size = buffer->size * 2 > buffer->used + more ? buffer->size * 2 : buffer->used + more;
        char *data = PyMem_Realloc(buffer->data, size);
        if (data == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        buffer->data = data;
        buffer->size = size;
    }
    return buffer->data + buffer->used;
}

static inline char *
put16(char *to, uint16_t value)
{
    to[0] = (char)(value >> 8);
    to[1] = (char)value;
    return to + 2;
}

static inline char *
put32(char *to, uint32_t value)
{
    to = put16(to, (uint16_t)(value >> 16));
    return put16(to, (uint16_t)value);
}

static inline char *
put64(char *to, uint64_t value)
{
    to = put32(to, (uint32_t)(value >> 32));
    return put32(to, (uint32_t)value);
}

static inline char *
field64(char *to, int64_t value)
{
    return put64(put32(to, 8), (uint64_t)value);
}

/* What of a metric set matters here. `set` is borrowed: the rows hold it. */
typedef struct {
    PyObject *set;
    int only_numbers;
    Py_ssize_t count;
    int64_t id;
} Metrics;

static int
look_at(Metrics *metrics, PyObject *set)
{
    PyObject *value = PyObject_GetAttr(set, str_only_numbers);
    if (value == NULL)
        return -1;
    metrics->only_numbers = PyObject_IsTrue(value);
    Py_DECREF(value);
    if (metrics->only_numbers < 0 || (value = PyObject_GetAttr(set, str_names)) == NULL)
        return -1;
    metrics->count = PyObject_Size(value);
    Py_DECREF(value);
    if (metrics->count < 0 || (value = PyObject_GetAttr(set, str_id)) == NULL)
        return -1;
    metrics->only_numbers &= int64_of(value, &metrics->id);
    Py_DECREF(value);
    metrics->set = set;
    return 0;
}

/* 1: the row was added; 0: it is one for the general way; -1: an exception. */
static int
pack(Buffer *buffer, PyObject *row, Metrics *metrics)
{
    if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != ROW_FIELDS)
        return 0;
    PyObject *values = PyTuple_GET_ITEM(row, VALUES), *set = PyTuple_GET_ITEM(row, METRIC_SET);
    if (metrics->set != set && look_at(metrics, set) < 0)
        return -1;
    if (!metrics->only_numbers || !(PyList_CheckExact(values) || PyTuple_CheckExact(values)))
        return 0;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(values);
    if (count == 0 || count != metrics->count)
        return 0;
    PyObject **items = PySequence_Fast_ITEMS(values);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!PyFloat_CheckExact(items[i]))
            return 0;
    int64_t shard, offset, device, time_ms, time_us, key, flags;
    if (!int64_of(PyTuple_GET_ITEM(row, SHARD), &shard) || shard != (int16_t)shard ||
        !int64_of(PyTuple_GET_ITEM(row, OFFSET), &offset) ||
        !int64_of(PyTuple_GET_ITEM(row, DEVICE), &device) ||
        !int64_of(PyTuple_GET_ITEM(row, TIME_MS), &time_ms) ||
        __builtin_sub_overflow(time_ms, EPOCH_2000_MS, &time_us) ||
        __builtin_mul_overflow(time_us, 1000, &time_us) ||
        !int64_of(PyTuple_GET_ITEM(row, KEY), &key) ||
        !int64_of(PyTuple_GET_ITEM(row, FLAGS), &flags) || flags != (int16_t)flags)
        return 0;
    size_t array_bytes = ARRAY_START_BYTES + NUMBER_BYTES * (size_t)count;
    if (array_bytes > INT32_MAX)
        return 0;
    char *to = reserve(buffer, FIXED_BYTES + array_bytes + NULL_BYTES);
    if (to == NULL)
        return -1;
    to = put16(to, COLUMNS);
    to = put16(put32(to, 2), (uint16_t)shard);
    to = field64(to, offset);
    to = field64(to, device);
    to = field64(to, time_us);
    to = field64(to, key);
    to = put16(put32(to, 2), (uint16_t)flags);
    to = field64(to, metrics->id);
    to = put32(to, (uint32_t)array_bytes);
    to = put32(to, 1); /* dimensions */
    to = put32(to, 0); /* no NULL among them */
    to = put32(to, FLOAT8_OID);
    to = put32(to, (uint32_t)count);
    to = put32(to, 1); /* the first index */
    for (Py_ssize_t i = 0; i < count; i++) {
        double number = PyFloat_AS_DOUBLE(items[i]);
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        to = field64(to, (int64_t)bits);
    }
    to = put32(to, UINT32_MAX); /* texts: NULL */
    buffer->used = (size_t)(to - buffer->data);
    return 1;
}

static int
append_general(Buffer *buffer, PyObject *general, PyObject *row)
{
    PyObject *packed = PyObject_CallOneArg(general, row);
    char *data, *to;
    Py_ssize_t size;
    int result = -1;
    if (packed == NULL)
        return -1;
    if (PyBytes_AsStringAndSize(packed, &data, &size) == 0 && (to = reserve(buffer, (size_t)size)) != NULL) {
        memcpy(to, data, (size_t)size);
        buffer->used += (size_t)size;
        result = 0;
    }
    Py_DECREF(packed);
    return result;
}

static PyObject *
pack_readings(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "pack_readings(rows, general)");
        return NULL;
    }
    /* A tuple of its own: what `general` does to the rows meanwhile cannot matter. */
    PyObject *rows = PySequence_Tuple(args[0]), *result = NULL;
    if (rows == NULL)
        return NULL;
    Buffer buffer = {NULL, 0, 0};
    Metrics metrics = {NULL, 0, 0, 0};
    Py_ssize_t size = PyTuple_GET_SIZE(rows);
    char *to = reserve(&buffer, HEADER_BYTES + (size_t)size * 160);
    if (to == NULL)
        goto end;
    memcpy(to, HEADER, HEADER_BYTES);
    buffer.used = HEADER_BYTES;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *row = PyTuple_GET_ITEM(rows, i);
        int packed = pack(&buffer, row, &metrics);
        if (packed < 0 || (packed == 0 && append_general(&buffer, args[1], row) < 0))
            goto end;
    }
    if ((to = reserve(&buffer, TRAILER_BYTES)) == NULL)
        goto end;
    put16(to, UINT16_MAX);
    buffer.used += TRAILER_BYTES;
    result = PyBytes_FromStringAndSize(buffer.data, (Py_ssize_t)buffer.used);
end:
    PyMem_Free(buffer.data);
    Py_DECREF(rows);
    return result;
}

static PyMethodDef methods[] = {
    {"pack_readings", (PyCFunction)(void (*)(void))pack_readings, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_rows", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__rows(void)
{
    if (!native_is_wanted())
        return NULL;
    if ((str_only_numbers = PyUnicode_InternFromString("only_numbers")) == NULL ||
        (str_names = PyUnicode_InternFromString("names")) == NULL ||
        (str_id = PyUnicode_InternFromString("id")) == NULL)
        return NULL;
    return PyModule_Create(&definition);
}
