/* `Flat`: reads one flat JSON object of numbers and booleans. What `_flat_py` says of it holds. */

#include "native.h"
#include <float.h>
#include <math.h>

#define MAX_METRICS 64
#define MAX_LAYOUT_BYTES 2048
#define MAX_NUMBER_BYTES 40
#define LAYOUTS 512 /* a power of two */
#define MAX_EXACT (1ULL << 53)
#define MAX_EXACT_POWER 22
#define MAX_TIME_MS 9e15

/* The keys of objects seen before, each followed by a quote, and the names they were approved as. */
typedef struct {
    PyObject *keys, *names;
} Layout;

typedef struct {
    PyObject_HEAD
    PyObject *approve;
    int64_t max_future_ms, max_past_ms;
    Layout layouts[LAYOUTS];
} Flat;

/* The next unread byte. A bytes object ends with a NUL, which no rule below accepts: none reads beyond it. */
typedef const unsigned char *Cursor;

static inline Cursor
skip_space(Cursor at)
{
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')
        at++;
    return at;
}

static inline int
is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

/* A JSON number into `value`, rounded as Python would; returns what follows it, or NULL for the general way. */
static Cursor
read_number(Cursor start, double *value)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    Cursor at = start + (*start == '-'), digits = at;
    uint64_t whole = 0; /* cannot overflow unnoticed: longer numbers are not taken below */
    int power = 0, exponent = 0;
    if (!is_digit(*at) || (*at == '0' && is_digit(at[1])))
        return NULL;
    for (; is_digit(*at); at++)
        whole = whole * 10 + (uint64_t)(*at - '0');
    Py_ssize_t count = at - digits;
    if (*at == '.') {
        Cursor point = at++;
        if (!is_digit(*at))
            return NULL;
        for (; is_digit(*at); at++)
            whole = whole * 10 + (uint64_t)(*at - '0');
        count += at - point - 1;
        if (at - start > MAX_NUMBER_BYTES)
            return NULL;
        power = -(int)(at - point - 1);
    }
    if (*at == 'e' || *at == 'E') {
        int negative = at[1] == '-';
        at += 1 + (at[1] == '-' || at[1] == '+');
        if (!is_digit(*at))
            return NULL;
        for (; is_digit(*at); at++)
            if (exponent < 100000)
                exponent = exponent * 10 + (*at - '0');
        power += negative ? -exponent : exponent;
    }
    if (at - start > MAX_NUMBER_BYTES)
        return NULL;
    if (FLT_EVAL_METHOD == 0 && count <= 19 && whole <= MAX_EXACT && power >= -MAX_EXACT_POWER &&
        power <= MAX_EXACT_POWER) {
        /* Both are exact, so there is one rounding, the right one (Clinger 1990). */
        *value = power < 0 ? (double)whole / powers[-power] : (double)whole * powers[power];
        if (*start == '-') {
            if (whole == 0)
                return NULL;
            *value = -*value;
        }
        return at;
    }
    char *end = NULL;
    *value = PyOS_string_to_double((const char *)start, &end, NULL);
    if (*value == -1.0 && PyErr_Occurred())
        PyErr_Clear();
    return (Cursor)end == at && isfinite(*value) && *value != 0.0 ? at : NULL;
}

static inline int
two_digits(Cursor at, int *value)
{
    *value = (at[0] - '0') * 10 + (at[1] - '0');
    return is_digit(at[0]) && is_digit(at[1]);
}

/* Days from 1970-01-01 to the first of a month in the Gregorian calendar (years from 1 on). */
static int64_t
days_before(int year, int month)
{
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    int64_t past = year - 1, leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return past * 365 + past / 4 - past / 100 + past / 400 + before[month - 1] + (month > 2 ? leap : 0) - 719162;
}

static int
days_in(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return days[month - 1] + (month == 2 && ((year % 4 == 0 && year % 100 != 0) || year % 400 == 0));
}

/* "YYYY-MM-DDTHH:MM:SS", perhaps with ".fff" or ".ffffff", perhaps with "Z" or "±HH:MM", behind its quote. */
static Cursor
read_iso(Cursor at, int64_t *time_ms)
{
    int century, year, month, day, hour, minute, second, micros = 0, offset_s = 0;
    if (!two_digits(at, &century) || !two_digits(at + 2, &year) || at[4] != '-' || !two_digits(at + 5, &month) ||
        at[7] != '-' || !two_digits(at + 8, &day) || at[10] != 'T' || !two_digits(at + 11, &hour) ||
        at[13] != ':' || !two_digits(at + 14, &minute) || at[16] != ':' || !two_digits(at + 17, &second))
        return NULL;
    year += century * 100;
    if (year < 1000 || month < 1 || month > 12 || day < 1 || day > days_in(year, month) || hour > 23 ||
        minute > 59 || second > 59)
        return NULL;
    at += 19;
    if (*at == '.') {
        int digits = 0;
        for (at++; is_digit(*at) && digits < 7; at++, digits++)
            micros = micros * 10 + (*at - '0');
        if (digits == 3)
            micros *= 1000;
        else if (digits != 6)
            return NULL;
    }
    if (*at == 'Z')
        at++;
    else if (*at == '+' || *at == '-') {
        int hours, minutes, sign = *at == '-' ? -1 : 1;
        if (!two_digits(at + 1, &hours) || at[3] != ':' || !two_digits(at + 4, &minutes) || hours > 23 || minutes > 59)
            return NULL;
        offset_s = sign * (hours * 3600 + minutes * 60);
        at += 6;
    }
    if (*at != '"')
        return NULL;
    int64_t seconds = (days_before(year, month) + day - 1) * 86400 + hour * 3600 + minute * 60 + second - offset_s;
    int64_t total_us = seconds * 1000000 + micros;
    if (total_us > (int64_t)MAX_EXACT || total_us < -(int64_t)MAX_EXACT)
        return NULL;
    /* As `datetime.timestamp()`, times 1000, and `round()` do it. */
    *time_ms = (int64_t)rint((double)total_us / 1e6 * 1000.0);
    return at + 1;
}

/* A key behind its opening quote: plain ASCII only. Returns its closing quote, or NULL. */
static inline Cursor
read_key(Cursor at)
{
    while (*at != '"') {
        if (*at < 0x20 || *at > 0x7e || *at == '\\')
            return NULL;
        at++;
    }
    return at;
}

/* The names of a layout that was not met before: NULL with an exception, or Py_None when a name stands twice. */
static PyObject *
approved(Flat *self, const char *keys, Py_ssize_t count)
{
    PyObject *names = PyTuple_New(count), *result;
    if (names == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *end = strchr(keys, '"');
        PyObject *name = PyUnicode_FromStringAndSize(keys, end - keys);
        if (name == NULL) {
            Py_DECREF(names);
            return NULL;
        }
        PyTuple_SET_ITEM(names, i, name);
        for (Py_ssize_t j = 0; j < i; j++)
            if (PyUnicode_Compare(PyTuple_GET_ITEM(names, j), name) == 0) {
                Py_DECREF(names);
                return Py_NewRef(Py_None);
            }
        keys = end + 1;
    }
    result = PyObject_CallOneArg(self->approve, names);
    Py_DECREF(names);
    return result;
}

/* A new reference to the names of these keys, as `approved`. `keys` is NUL-terminated. */
static PyObject *
names_of(Flat *self, const char *keys, Py_ssize_t size, Py_ssize_t count)
{
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a, folded */
    for (Py_ssize_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)keys[i]) * 0x100000001b3ULL;
    Layout *layout = &self->layouts[(hash ^ hash >> 32) & (LAYOUTS - 1)];
    if (layout->keys != NULL && PyBytes_GET_SIZE(layout->keys) == size &&
        memcmp(PyBytes_AS_STRING(layout->keys), keys, (size_t)size) == 0)
        return Py_NewRef(layout->names);
    PyObject *names = approved(self, keys, count);
    if (names == NULL || names == Py_None)
        return names;
    PyObject *bytes = PyBytes_FromStringAndSize(keys, size);
    if (bytes == NULL) {
        Py_DECREF(names);
        return NULL;
    }
    Py_XSETREF(layout->keys, bytes);
    Py_XSETREF(layout->names, Py_NewRef(names));
    return names;
}

typedef struct {
    char keys[MAX_LAYOUT_BYTES];
    Py_ssize_t key_bytes, count;
    PyObject *values[MAX_METRICS]; /* owned */
    int64_t time_ms;
    int has_time;
} Members;

/* One member behind its key's opening quote. Returns what follows it, or NULL for the general way. */
static Cursor
read_member(Cursor at, Members *members)
{
    static const char stamp[] = "timestamp";
    Cursor key = at, end = read_key(at);
    if (end == NULL)
        return NULL;
    Py_ssize_t size = end - key;
    at = skip_space(end + 1);
    if (*at != ':')
        return NULL;
    at = skip_space(at + 1);
    double number;
    if (size == sizeof stamp - 1 && memcmp(key, stamp, sizeof stamp - 1) == 0) {
        if (members->has_time)
            return NULL;
        members->has_time = 1;
        if (*at == '"')
            return read_iso(at + 1, &members->time_ms);
        if ((at = read_number(at, &number)) == NULL || fabs(number) > MAX_TIME_MS)
            return NULL;
        members->time_ms = (int64_t)number;
        return at;
    }
    if (members->count == MAX_METRICS || members->key_bytes + size + 2 > MAX_LAYOUT_BYTES)
        return NULL;
    PyObject *value;
    if (strncmp((const char *)at, "true", 4) == 0) {
        value = Py_NewRef(Py_True);
        at += 4;
    }
    else if (strncmp((const char *)at, "false", 5) == 0) {
        value = Py_NewRef(Py_False);
        at += 5;
    }
    else if ((at = read_number(at, &number)) == NULL || (value = PyFloat_FromDouble(number)) == NULL)
        return NULL;
    memcpy(members->keys + members->key_bytes, key, (size_t)size + 1); /* with its closing quote */
    members->key_bytes += size + 1;
    members->values[members->count++] = value;
    return at;
}

/* Whether all of `payload` is one flat object. 0 without an exception: it is one for the general way. */
static int
read_object(PyObject *payload, Members *members)
{
    Cursor start = (Cursor)PyBytes_AS_STRING(payload), at = skip_space(start);
    if (*at != '{')
        return 0;
    at = skip_space(at + 1);
    while (*at == '"') {
        at = read_member(at + 1, members);
        if (at == NULL)
            return 0;
        at = skip_space(at);
        if (*at == '}')
            return skip_space(at + 1) - start == PyBytes_GET_SIZE(payload);
        if (*at != ',')
            return 0;
        at = skip_space(at + 1);
    }
    return 0;
}

static PyObject *
flat_read(Flat *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t received_ms, latest_ms, earliest_ms;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "read(payload, received_ms)");
        return NULL;
    }
    if (!PyBytes_CheckExact(args[0]) || !int64_of(args[1], &received_ms) ||
        __builtin_add_overflow(received_ms, self->max_future_ms, &latest_ms) ||
        __builtin_sub_overflow(received_ms, self->max_past_ms, &earliest_ms))
        Py_RETURN_NONE;
    Members members;
    members.key_bytes = members.count = members.has_time = 0;
    PyObject *names = NULL, *values = NULL, *result = NULL;
    if (!read_object(args[0], &members) ||
        (members.has_time && (members.time_ms > latest_ms || members.time_ms < earliest_ms))) {
        if (!PyErr_Occurred())
            result = Py_NewRef(Py_None);
        goto end;
    }
    members.keys[members.key_bytes] = '\0';
    names = names_of(self, members.keys, members.key_bytes, members.count);
    if (names == NULL)
        goto end;
    if (names == Py_None) {
        result = Py_NewRef(names);
        goto end;
    }
    if ((values = PyList_New(members.count)) == NULL)
        goto end;
    for (Py_ssize_t i = 0; i < members.count; i++)
        PyList_SET_ITEM(values, i, Py_NewRef(members.values[i]));
    result = Py_BuildValue("(LOOO)", (long long)(members.has_time ? members.time_ms : received_ms), names, values,
                           members.has_time ? Py_True : Py_False);
end:
    for (Py_ssize_t i = 0; i < members.count; i++)
        Py_DECREF(members.values[i]);
    Py_XDECREF(names);
    Py_XDECREF(values);
    return result;
}

static PyObject *
flat_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"approve", "max_future_ms", "max_past_ms", NULL};
    PyObject *approve;
    long long future_ms, past_ms;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OLL:Flat", names, &approve, &future_ms, &past_ms))
        return NULL;
    Flat *self = (Flat *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->approve = Py_NewRef(approve);
        self->max_future_ms = future_ms;
        self->max_past_ms = past_ms;
    }
    return (PyObject *)self;
}

static int
flat_traverse(Flat *self, visitproc visit, void *arg)
{
    Py_VISIT(self->approve);
    for (int i = 0; i < LAYOUTS; i++)
        Py_VISIT(self->layouts[i].names);
    return 0;
}

static int
flat_clear(Flat *self)
{
    Py_CLEAR(self->approve);
    for (int i = 0; i < LAYOUTS; i++) {
        Py_CLEAR(self->layouts[i].keys);
        Py_CLEAR(self->layouts[i].names);
    }
    return 0;
}

static void
flat_dealloc(Flat *self)
{
    PyObject_GC_UnTrack(self);
    flat_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef flat_methods[] = {
    {"read", (PyCFunction)(void (*)(void))flat_read, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject FlatType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sensorium.ingest._flat.Flat",
    .tp_basicsize = sizeof(Flat),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = flat_new,
    .tp_dealloc = (destructor)flat_dealloc,
    .tp_traverse = (traverseproc)flat_traverse,
    .tp_clear = (inquiry)flat_clear,
    .tp_methods = flat_methods,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_flat", .m_size = -1};

PyMODINIT_FUNC
PyInit__flat(void)
{
    if (!native_is_wanted() || PyType_Ready(&FlatType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "Flat", (PyObject *)&FlatType) < 0)
        Py_CLEAR(module);
    return module;
}
