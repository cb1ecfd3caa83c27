"""A program that runs an embedded PostgreSQL, for tests that end it: `holder.py DATA_DIR [where]`.

It prints the URL, or `error: <sentence>`; on SIGTERM it stops the server, prints `stopped <seconds>` and ends.
With `thread` it starts the server from a thread that ends at once.
"""

import signal
import sys
import threading
import time
from pathlib import Path

from stepway.postgres.embedded import EmbeddedPostgres, PostgresError


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    postgres = EmbeddedPostgres(Path(sys.argv[1]))
    urls: list[str] = []
    try:
        if sys.argv[2:] == ["thread"]:
            thread = threading.Thread(target=lambda: urls.append(postgres.start()))
            thread.start()
            thread.join()
        else:
            urls.append(postgres.start())
    except PostgresError as error:
        sys.exit(f"error: {error}")
    say(urls[0])
    signal.sigwait({signal.SIGTERM})
    began = time.monotonic()
    postgres.stop()
    say(f"stopped {time.monotonic() - began}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
