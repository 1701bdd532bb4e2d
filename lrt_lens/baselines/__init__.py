"""Maps between model families without paired tokens; each method returns a `Stitch`.

Methods: anchors (texts that both models read), shared vocabularies, and no pairs at all.
"""
