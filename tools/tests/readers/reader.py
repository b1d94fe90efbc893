"""Reads an interval log with hdrhistogram of PyPI and prints the percentile distribution of one tag, in microseconds."""

import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

path, wanted = sys.argv[1], sys.argv[2]
whole = HdrHistogram(1, 60_000_000_000, 3)
reader = HistogramLogReader(path, whole)
while True:
    interval = reader.get_next_interval_histogram()
    if interval is None:
        break
    if (interval.get_tag() or "untagged") == wanted:
        whole.add(interval)
whole.output_percentile_distribution(sys.stdout.buffer, 1000.0, 5)
