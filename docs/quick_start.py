import lrt_lens as lrt

pair = lrt.demo_pair()
documents = lrt.demo_documents()
grid = lrt.fit_stitches(pair, documents, n_tokens=100_000, progress=False)
stitch = grid.best(source=2)
contrast = lrt.demo_contrast("sentiment")
vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
transferred = stitch.transfer(vector)
strength = lrt.calibrate_scale(pair.target, transferred, lrt.demo_neutral(), damage=0.1)
with transferred.apply(pair.target, scale=strength.scale):
    text = pair.target.generate("This film was", max_new_tokens=24)
print(stitch, transferred, f"scale {strength.scale:.2f}", f"This film was{text}", sep="\n")
