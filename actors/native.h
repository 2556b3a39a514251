/* What all C modules share: how they are switched off, and integers of Python that fit 64 bits. */

#ifndef SENSORIUM_NATIVE_H
#define SENSORIUM_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

/* With SENSORIUM_PURE set to anything but "" and "0", importing any of them fails, and the twin in Python is taken. */
static inline int
native_is_wanted(void)
{
    const char *pure = getenv("SENSORIUM_PURE");
    if (pure != NULL && pure[0] != '\0' && strcmp(pure, "0") != 0) {
        PyErr_SetString(PyExc_ImportError, "SENSORIUM_PURE asks for the Python twin");
        return 0;
    }
    return 1;
}

/* Whether `object` is an int of 64 bits, put into `value`. Sets no exception. */
static inline int
int64_of(PyObject *object, int64_t *value)
{
    int overflow;
    if (!PyLong_Check(object))
        return 0;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

#endif
