"""Libraries that read what strangers wrote, each in a child process with limits: a page, a PDF, a query or a pattern can be
made to take hours or all memory. One module per library, so that a child has only its own in memory; `computed` runs them.
"""
