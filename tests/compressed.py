"""Compressed data that tests share."""

import functools
import gzip

gzipped = functools.partial(gzip.compress, mtime=0)  # the same bytes at any time, in every process of a parallel run
