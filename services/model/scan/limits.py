"""Bounds on what a scan spends on one file. Sizes in bytes. Beyond one, the file is an error, never safe."""

HEAD = 64 * 1024  # read of every file to say what it is
HEAD_OF_NUMBERS = 8 * 1024  # the same, of a storage in a torch file
MAX_DEPTH = 6  # archives in archives
MAX_MEMBERS = 20_000  # of all archives in one file
MAX_EXPANDED = 32 * 1024**3  # unpacked from all archives in one file
MAX_RATIO = 1000  # unpacked to packed (deflate cannot do better than 1032; runs of zeros come near)
RATIO_FROM = 100 * 1024**2  # below this size no ratio is a bomb
SPOOL_IN_MEMORY = 16 * 1024**2
MAX_TEXT = 64 * 1024**2  # of a file that has to be parsed as a whole: JSON, YAML, templates
MAX_TEMPLATE = 1024**2
MAX_ISSUES_PER_FILE = 200

MAX_PICKLE_OPCODES = 50_000_000
MAX_PICKLE_STREAMS = 10_000
MAX_PICKLE_TO_OTHERS = 32 * 1024**2  # that the other scanners get, without large byte strings
MAX_OPCODES_MODELAUDIT = 150_000  # its time grows with their square: 0.5 s here, 24 s for 660,000
MAX_OPCODES_PICKLESCAN = 1_000_000  # it keeps them all in memory
LARGE_BYTES = 4 * 1024  # a byte string in a pickle from which on it is skipped, not read

MAX_SAFETENSORS_HEADER = 100 * 1024**2  # as the format's own reader has it
MAX_GGUF_STRING = 64 * 1024**2
MAX_GGUF_COUNT = 1 << 24
MAX_PROTOBUF = 256 * 1024**2
