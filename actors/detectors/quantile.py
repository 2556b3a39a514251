"""One quantile of a stream in five markers: the P² algorithm.

R. Jain and I. Chlamtac, "The P² algorithm for dynamic calculation of quantiles and histograms without storing
observations", Communications of the ACM 28(10), 1985.
"""

from sensorium.actors.detectors.score import State, check_length


class P2Quantile:
    """The `q`-quantile (0 < q < 1), exact for up to five values, an estimate afterwards.

    At `memory` values the markers' positions are halved, so that what is older weighs less and the estimate
    can follow a change.
    """

    __slots__ = ("_heights", "_memory", "_positions", "_q", "_wanted")

    def __init__(self, q: float, memory: int = 4000) -> None:
        self._q = q
        self._memory = memory
        self._heights: list[float] = []
        self._positions = [0.0, 1.0, 2.0, 3.0, 4.0]
        self._wanted = [0.0, 2.0 * q, 4.0 * q, 2.0 + 2.0 * q, 4.0]

    @property
    def value(self) -> float:
        """The estimate now; 0 before the first value."""
        heights = self._heights
        if len(heights) < 5:
            return heights[round(self._q * (len(heights) - 1))] if heights else 0.0
        return heights[2]

    def add(self, value: float) -> None:
        """Take one more value in."""
        heights = self._heights
        if len(heights) < 5:
            heights.append(value)
            heights.sort()
            return
        positions = self._positions
        if value < heights[0]:
            heights[0] = value
            cell = 0
        elif value >= heights[4]:
            heights[4] = value
            cell = 3
        else:
            cell = 0
            while value >= heights[cell + 1]:
                cell += 1
        for i in range(cell + 1, 5):
            positions[i] += 1.0
        last = positions[4]
        q = self._q
        wanted = self._wanted
        wanted[1], wanted[2], wanted[3], wanted[4] = last * q / 2, last * q, last * (1 + q) / 2, last
        for i in (1, 2, 3):
            behind = wanted[i] - positions[i]
            if behind >= 1.0 and positions[i + 1] - positions[i] > 1.0:
                self._move(i, 1.0)
            elif behind <= -1.0 and positions[i - 1] - positions[i] < -1.0:
                self._move(i, -1.0)
        if last >= self._memory:
            # Whole positions, each at least one apart, as the algorithm needs them.
            for i in range(1, 5):
                positions[i] = max(positions[i] // 2, positions[i - 1] + 1.0)

    def _move(self, i: int, step: float) -> None:
        heights, positions = self._heights, self._positions
        below, here, above = positions[i - 1], positions[i], positions[i + 1]
        parabola = heights[i] + step / (above - below) * (
            (here - below + step) * (heights[i + 1] - heights[i]) / (above - here)
            + (above - here - step) * (heights[i] - heights[i - 1]) / (here - below)
        )
        if heights[i - 1] < parabola < heights[i + 1]:
            heights[i] = parabola
        else:
            neighbour = i + int(step)
            heights[i] += step * (heights[neighbour] - heights[i]) / (positions[neighbour] - positions[i])
        positions[i] += step

    def dump(self) -> State:
        """How many heights there are, five heights (0 for none), five positions."""
        missing = 5 - len(self._heights)
        return [float(len(self._heights)), *self._heights, *([0.0] * missing), *self._positions]

    def restore(self, state: State) -> None:
        """Take over what `dump` gave."""
        check_length(state, 11)
        self._heights = list(state[1 : 1 + int(state[0])])
        self._positions = list(state[6:])
