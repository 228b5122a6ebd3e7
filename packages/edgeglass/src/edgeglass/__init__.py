"""Images, text and audio in one nested (Matryoshka) space: align encoders, embed files, search at any width.

    from edgeglass import Aligner, Index
    aligner = Aligner.from_pretrained("runs/edgeglass/first")
    aligner.encode(texts=["a red ball"], dim=128)
    Index.open("index/").search("a red ball", k=10)

Names load when they are first used, so that `import edgeglass` costs nothing.
"""

__version__ = "0.1.0"
