/* A metric's values to the figures of buckets: the same as `_fold_py`, which says what holds. */

#include "native.h"
#include <math.h>
#include <string.h>

/* As `sensorium.actors.sketch` has them. */
#define RELATIVE_ERROR 0.01
#define BIAS 40000
#define MAX_BINS 2048
#define HEADER_BYTES 5

typedef struct {
    int64_t bucket_ms;
    Py_ssize_t row;
} Item;

typedef struct {
    int32_t bin;
    uint64_t count;
} Bin;

static double log_gamma;

static int
compare_items(const void *a, const void *b)
{
    const Item *left = a, *right = b;
    if (left->bucket_ms != right->bucket_ms)
        return left->bucket_ms < right->bucket_ms ? -1 : 1;
    return left->row < right->row ? -1 : left->row > right->row;
}

static int
compare_bins(const void *a, const void *b)
{
    int32_t left = *(const int32_t *)a, right = *(const int32_t *)b;
    return left < right ? -1 : left > right;
}

static inline int32_t
bin_of(double value)
{
    if (value > 0.0)
        return (int32_t)ceil(log(value) / log_gamma) + BIAS;
    return value < 0.0 ? -((int32_t)ceil(log(-value) / log_gamma) + BIAS) : 0;
}

static inline int
width_of(uint64_t largest)
{
    return largest < 1 << 8 ? 0 : largest < 1 << 16 ? 1 : largest <= UINT32_MAX ? 2 : 3;
}

static inline char *
put(char *to, uint64_t value, int width)
{
    for (int byte = 0; byte < 1 << width; byte++)
        *to++ = (char)(value >> (8 * byte));
    return to;
}

/* Sorted bins, each with how often it is there, from the bins of `count` values; how many there are. */
static Py_ssize_t
counted(int32_t *bins, Py_ssize_t count, Bin *found)
{
    Py_ssize_t used = 0;
    qsort(bins, (size_t)count, sizeof *bins, compare_bins);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (used > 0 && found[used - 1].bin == bins[i])
            found[used - 1].count++;
        else
            found[used++] = (Bin){bins[i], 1};
    }
    if (used > MAX_BINS) {
        /* The lowest become one, which is the highest of them. */
        Py_ssize_t lowest = used - MAX_BINS;
        for (Py_ssize_t i = 0; i < lowest; i++)
            found[lowest].count += found[i].count;
        memmove(found, found + lowest, MAX_BINS * sizeof *found);
        used = MAX_BINS;
    }
    return used;
}

static PyObject *
encoded(const Bin *bins, Py_ssize_t used)
{
    uint64_t step = 0, most = bins[0].count;
    for (Py_ssize_t i = 1; i < used; i++) {
        uint64_t next = (uint64_t)((int64_t)bins[i].bin - bins[i - 1].bin);
        step = next > step ? next : step;
        most = bins[i].count > most ? bins[i].count : most;
    }
    int step_width = width_of(step), count_width = width_of(most);
    Py_ssize_t size = HEADER_BYTES + ((used - 1) << step_width) + (used << count_width);
    PyObject *result = PyBytes_FromStringAndSize(NULL, size);
    if (result == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(result);
    to = put(to, (uint64_t)(step_width << 4 | count_width), 0);
    to = put(to, (uint64_t)(int64_t)bins[0].bin, 2);
    for (Py_ssize_t i = 1; i < used; i++)
        to = put(to, (uint64_t)((int64_t)bins[i].bin - bins[i - 1].bin), step_width);
    for (Py_ssize_t i = 0; i < used; i++)
        to = put(to, bins[i].count, count_width);
    return result;
}

/* The figures of one bucket, whose rows are in the order of the log. */
static PyObject *
figures(const Item *items, Py_ssize_t count, const int64_t *times_ms, const double *values, Py_ssize_t row_width,
        int32_t *bins, Bin *found)
{
    Py_ssize_t first = items[0].row, last = first;
    double total = 0.0, squares = 0.0, least = values[first * row_width], most = least;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t row = items[i].row;
        double value = values[row * row_width];
        total += value;
        squares += value * value;
        if (value < least)
            least = value;
        if (value > most)
            most = value;
        if (times_ms[row] < times_ms[first])
            first = row;
        if (times_ms[row] >= times_ms[last])
            last = row;
        bins[i] = bin_of(value);
    }
    PyObject *sketch = encoded(found, counted(bins, count, found));
    if (sketch == NULL)
        return NULL;
    return Py_BuildValue("(LLLddddddnNOO)", (long long)items[0].bucket_ms, (long long)times_ms[first],
                         (long long)times_ms[last], total, squares, least, most, values[first * row_width],
                         values[last * row_width], count, sketch, Py_None, Py_None);
}

static PyObject *
folded(const int64_t *times_ms, const double *values, Py_ssize_t rows, Py_ssize_t row_width, int64_t bucket_ms)
{
    Item *items = PyMem_New(Item, rows + 1);
    int32_t *bins = PyMem_New(int32_t, rows + 1);
    Bin *found = PyMem_New(Bin, rows + 1);
    PyObject *result = PyList_New(0);
    Py_ssize_t count = 0;
    int in_order = 1;
    if (items == NULL || bins == NULL || found == NULL || result == NULL) {
        if (result != NULL)
            PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t row = 0; row < rows; row++) {
        if (isnan(values[row * row_width]))
            continue;
        int64_t rest = times_ms[row] % bucket_ms;
        items[count] = (Item){times_ms[row] - (rest < 0 ? rest + bucket_ms : rest), row};
        if (count > 0 && items[count].bucket_ms < items[count - 1].bucket_ms)
            in_order = 0;
        count++;
    }
    if (!in_order)
        qsort(items, (size_t)count, sizeof *items, compare_items);
    for (Py_ssize_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && items[end].bucket_ms == items[begin].bucket_ms; end++)
            ;
        PyObject *bucket = figures(items + begin, end - begin, times_ms, values, row_width, bins, found);
        if (bucket == NULL || PyList_Append(result, bucket) < 0) {
            Py_XDECREF(bucket);
            goto failed;
        }
        Py_DECREF(bucket);
    }
    goto end;
failed:
    Py_CLEAR(result);
end:
    PyMem_Free(items);
    PyMem_Free(bins);
    PyMem_Free(found);
    return result;
}

static PyObject *
fold(PyObject *module, PyObject *args)
{
    Py_buffer times, numbers;
    Py_ssize_t slot, row_width;
    long long bucket_ms;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*nnL:fold", &times, &numbers, &slot, &row_width, &bucket_ms))
        return NULL;
    Py_ssize_t rows = times.len / (Py_ssize_t)sizeof(int64_t);
    if (times.len % (Py_ssize_t)sizeof(int64_t) || slot < 0 || slot >= row_width || bucket_ms <= 0 ||
        row_width > PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(double) / (rows + 1) ||
        numbers.len != rows * row_width * (Py_ssize_t)sizeof(double))
        PyErr_SetString(PyExc_ValueError, "times and numbers do not fit each other");
    else
        result = folded(times.buf, (const double *)numbers.buf + slot, rows, row_width, bucket_ms);
    PyBuffer_Release(&times);
    PyBuffer_Release(&numbers);
    return result;
}

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_fold", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__fold(void)
{
    if (!native_is_wanted())
        return NULL;
    log_gamma = log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR));
    return PyModule_Create(&definition);
}
