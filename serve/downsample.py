"""Fewer points that look like all of them: largest triangle, three buckets (Steinarsson 2013). Pure."""

from collections.abc import Sequence

Point = tuple[int, float]


def lttb(points: Sequence[Point], count: int) -> list[Point]:
    """`count` of the points, which are in order of time; all, where they are not more. The ends stay.

    Between them are `count - 2` spans of equally many points. Of each that one stays which makes the largest
    triangle with the point that stayed before it and the mean of the span after it. Takes linear time.
    """
    if count >= len(points) or count < 3:
        return list(points) if count >= len(points) else [points[0], points[-1]][:count]
    width = (len(points) - 2) / (count - 2)
    edges = [1 + int(width * n) for n in range(count - 2)] + [len(points) - 1]
    kept = [points[0]]
    for n in range(count - 2):
        here = points[edges[n] : edges[n + 1]]
        after = points[edges[n + 1] : edges[n + 2]] if n < count - 3 else points[-1:]
        mean_x = sum(x for x, _ in after) / len(after)
        mean_y = sum(y for _, y in after) / len(after)
        x, y = kept[-1]
        dx, dy = x - mean_x, mean_y - y
        best, largest = here[0], -1.0
        for point in here:
            # Twice the area; only which is largest counts.
            area = abs(dx * (point[1] - y) - (x - point[0]) * dy)
            if area > largest:
                best, largest = point, area
        kept.append(best)
    kept.append(points[-1])
    return kept
