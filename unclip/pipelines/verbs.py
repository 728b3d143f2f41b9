"""The edits as methods of the pipelines."""

from unclip.editing import edits
from unclip.editing.img2img import img2img
from unclip.editing.inpaint import inpaint
from unclip.editing.mix import mix


class ImageEdits:
    """Of any pipeline that draws."""

    img2img = img2img
    inpaint = inpaint


class LatentEdits(ImageEdits):
    """Of one with a CLIP and a decoder that inverts."""

    invert = edits.invert
    reconstruct = edits.reconstruct
    vary = edits.vary
    interpolate = edits.interpolate
    mix = mix
    text_diff = edits.text_diff
    reconstruct_pca = edits.reconstruct_pca
