"""Maps that cross model families without paired tokens: anchors, shared vocabularies, no pairs at
all. Each comes out as a `Stitch`.
"""
