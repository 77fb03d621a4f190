"""Limits on all that comes from outside; `book/limits.md` says what each is for."""

MAX_JSON = 64_000_000  # bytes of a JSON document: a manifest, a configuration, a state's notes
# A light curve file.
MAX_BYTES, MAX_LINES = 256_000_000, 2_000_000  # bytes and lines of the text, unpacked
MAX_LINE = 1_000_000  # characters of a line
MAX_COLUMNS, MAX_VALUES = 256, 30_000_000  # a value: one column of one row
MAX_ASTROPY = 32_000_000  # bytes of a table that astropy reads
MAX_HEADER, LONGEST_NAME = 10_000, 200  # characters of a header, of a column's name
# A stream.
BATCH = 1000  # lines that are answered together
MAX_LINE_BYTES = 1 << 20  # of a line, whose rest is cut; of a batch
MAX_NAME = 4096  # characters of the name of an event or a data set
MAX_QUOTED = 80  # characters of an input that a message repeats
MAX_EVENTS = 100_000  # of `stream --max_events`; they take 6 GB
MOST_SETS = 64  # data sets of an event
# A light-curve set, a run folder.
MAX_PAIRS, MAX_SHARDS = 1_000_000_000, 100_000  # of a set that is simulated
MAX_EPOCHS = 1_000_000  # of a survey's grid
MAX_WORKERS = 1024  # processes of `simulate`
MAX_PACKED = 200  # bytes that one byte of an archive above the next limit may unpack to
MAX_UNPACKED = 256_000_000  # bytes
MAX_WIDTH = 4096  # channels of a layer
