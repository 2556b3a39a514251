/* Cuts plain PUBLISH packets off a stream: the same as `_publish_py`, which says what holds. */

#include "native.h"

#define PUBLISH 0x30
#define QOS_BITS 0x06
#define QOS_1 0x02
#define PUBACK_WORD 0x40020000UL
#define MAX_LENGTH_BYTES 4

/* One packet at `at`: its bytes, or 0 when it is not plain or not complete. */
static size_t
measure(const unsigned char *at, size_t left, size_t max_bytes, size_t *header_bytes)
{
    if (left < 2 || (at[0] & 0xf0) != PUBLISH || (at[0] & QOS_BITS) > QOS_1)
        return 0;
    size_t length = 0, place = 1;
    for (;; place++) {
        if (place > MAX_LENGTH_BYTES || place >= left)
            return 0;
        length |= (size_t)(at[place] & 127) << 7 * (place - 1);
        if (at[place] < 128)
            break;
    }
    *header_bytes = place + 1;
    return length > max_bytes || length > left - *header_bytes ? 0 : *header_bytes + length;
}

/* The packet's tuple, NULL with an exception, or Py_None (borrowed) when it is not plain. */
static PyObject *
cut(const unsigned char *at, size_t size, size_t header_bytes, PyObject **word)
{
    const unsigned char *end = at + size, *topic = at + header_bytes + 2;
    if (end - at < (Py_ssize_t)header_bytes + 2)
        return Py_None;
    Py_ssize_t topic_bytes = topic[-2] << 8 | topic[-1];
    int acknowledged = (at[0] & QOS_BITS) != 0;
    /* The property block's length must follow, and be 0. */
    if (topic_bytes == 0 || end - topic < topic_bytes + 2 * acknowledged + 1)
        return Py_None;
    const unsigned char *rest = topic + topic_bytes;
    unsigned long ack = 0;
    if (acknowledged) {
        ack = PUBACK_WORD | (unsigned long)rest[0] << 8 | rest[1];
        rest += 2;
    }
    if (*rest++ != 0)
        return Py_None;
    PyObject *head = PyLong_FromLong(at[0]);
    *word = PyLong_FromUnsignedLong(ack);
    PyObject *packet = head == NULL || *word == NULL
                           ? NULL
                           : Py_BuildValue("(y#y#OOO)", topic, topic_bytes, rest, end - rest, *word, head, Py_None);
    Py_XDECREF(head);
    if (packet == NULL || !acknowledged)
        Py_CLEAR(*word);
    return packet;
}

static PyObject *
cut_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    Py_ssize_t position, max_bytes;
    if (count != 3 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "cut_plain(data: bytes, position, max_packet_bytes)");
        return NULL;
    }
    if (((position = PyLong_AsSsize_t(args[1])) == -1 && PyErr_Occurred()) ||
        ((max_bytes = PyLong_AsSsize_t(args[2])) == -1 && PyErr_Occurred()))
        return NULL;
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    if (position < 0 || position > size || max_bytes < 0) {
        PyErr_SetString(PyExc_ValueError, "the position is not in the data, or the bound is negative");
        return NULL;
    }
    PyObject *packets = PyList_New(0), *words = PyList_New(0);
    while (packets != NULL && words != NULL) {
        size_t header_bytes, bytes = measure(data + position, (size_t)(size - position), (size_t)max_bytes, &header_bytes);
        if (bytes == 0)
            return Py_BuildValue("(NNn)", packets, words, position);
        PyObject *word = NULL, *packet = cut(data + position, bytes, header_bytes, &word);
        if (packet == Py_None)
            return Py_BuildValue("(NNn)", packets, words, position);
        int failed = packet == NULL || PyList_Append(packets, packet) < 0 ||
                     (word != NULL && PyList_Append(words, word) < 0);
        Py_XDECREF(packet);
        Py_XDECREF(word);
        if (failed)
            break;
        position += (Py_ssize_t)bytes;
    }
    Py_XDECREF(packets);
    Py_XDECREF(words);
    return NULL;
}

static PyMethodDef methods[] = {
    {"cut_plain", (PyCFunction)(void (*)(void))cut_plain, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_publish", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__publish(void)
{
    return native_is_wanted() ? PyModule_Create(&definition) : NULL;
}
