"""The writer of self-contained HTML reports, and of ``results.json``.

Reports are sections of paragraphs, tables, figures, key numbers and continuations; the page loads
nothing from the network.
"""
