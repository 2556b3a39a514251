/* Panes of a rolling window in C: their layout and arithmetic. `_panes_py` says what they mean. */

#ifndef SENSORIUM_PANES_H
#define SENSORIUM_PANES_H

#include "native.h"
#include <math.h>

enum { COUNT, SUM, SQUARES, MIN, MAX, FIRST, LAST, FIRST_MS, LAST_MS, SHIFT, CELLS };

/* Behind the panes: the sums over all but the newest. */
enum { CLOSED_COUNT, CLOSED_SUM, CLOSED_SQUARES, CLOSED_SHIFT, CLOSED_BEFORE, TAIL };

typedef struct {
    PyObject_HEAD
    int64_t slide_ms;
    int64_t newest; /* counts once `reached` */
    Py_ssize_t panes;
    Py_ssize_t metrics;
    double **cells; /* by position in the metric set; NULL where no number was */
    int reached;
} Panes;

typedef struct {
    double count, mean, stddev;
} Moments;

/* `divisor` is positive; rounds down, as Python does. */
static inline int64_t
floor_div(int64_t value, int64_t divisor)
{
    return value / divisor - (value % divisor < 0);
}

static inline Py_ssize_t
base_of(const Panes *self, int64_t pane)
{
    int64_t place = pane % self->panes;
    return (Py_ssize_t)(place < 0 ? place + self->panes : place) * CELLS;
}

static inline Py_ssize_t
cell_count(const Panes *self)
{
    return self->panes * CELLS + TAIL;
}

/* Make `pane` the newest, if it is newer; empties those that it leaves behind. */
static inline void
panes_move_to(Panes *self, int64_t pane)
{
    if (self->reached && pane <= self->newest)
        return;
    uint64_t stale = self->reached ? (uint64_t)pane - (uint64_t)self->newest : 0;
    if (stale > (uint64_t)self->panes)
        stale = (uint64_t)self->panes;
    self->newest = pane;
    self->reached = 1;
    Py_ssize_t base = base_of(self, pane);
    for (; stale; stale--) {
        for (Py_ssize_t position = 0; position < self->metrics; position++) {
            double *cells = self->cells[position];
            if (cells != NULL && cells[base] != 0.0)
                memset(cells + base, 0, CELLS * sizeof *cells);
        }
        base = (base ? base : self->panes * CELLS) - CELLS;
    }
}

static inline void
add_up_closed(const Panes *self, double *cells)
{
    Py_ssize_t end = self->panes * CELLS, skip = base_of(self, self->newest);
    double *closed = cells + end, shift = 0.0;
    for (Py_ssize_t base = 0; base < end; base += CELLS)
        if (base != skip && cells[base] != 0.0) {
            shift = cells[base + SHIFT];
            break;
        }
    double counts = 0.0, sums = 0.0, squares = 0.0, moved_sum = 0.0, doubled = 0.0, moved_off = 0.0;
    for (Py_ssize_t base = 0; base < end; base += CELLS) {
        if (base == skip || cells[base] == 0.0)
            continue;
        double off = cells[base + SHIFT] - shift, moved = cells[base] * off;
        counts += cells[base];
        sums += cells[base + SUM];
        squares += cells[base + SQUARES];
        moved_sum += moved;
        doubled += cells[base + SUM] * off;
        moved_off += moved * off;
    }
    closed[CLOSED_COUNT] = counts;
    closed[CLOSED_SUM] = sums + moved_sum;
    closed[CLOSED_SQUARES] = squares + 2.0 * doubled + moved_off;
    closed[CLOSED_SHIFT] = shift;
    closed[CLOSED_BEFORE] = (double)self->newest;
}

/* Whether there is a reading of this metric in the window, whose `moments` these are. */
static inline int
panes_moments(const Panes *self, Py_ssize_t position, Moments *moments)
{
    if (!self->reached || position < 0 || position >= self->metrics || self->cells[position] == NULL)
        return 0;
    double *cells = self->cells[position], *closed = cells + self->panes * CELLS;
    if (closed[CLOSED_BEFORE] != (double)self->newest)
        add_up_closed(self, cells);
    const double *pane = cells + base_of(self, self->newest);
    double count = pane[COUNT], total = count + closed[CLOSED_COUNT];
    if (total == 0.0)
        return 0;
    double sum = pane[SUM], squares = pane[SQUARES], shift = pane[SHIFT];
    if (count < total) {
        double off = shift - closed[CLOSED_SHIFT];
        shift = closed[CLOSED_SHIFT];
        squares += closed[CLOSED_SQUARES] + (2.0 * sum + count * off) * off;
        sum += closed[CLOSED_SUM] + count * off;
    }
    double mean_off = sum / total, variance = squares / total - mean_off * mean_off;
    moments->count = total;
    moments->mean = shift + mean_off;
    moments->stddev = variance > 0.0 ? sqrt(variance) : 0.0;
    return 1;
}

#endif
