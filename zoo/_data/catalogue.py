"""The named data sets: what they are, their parts, addresses and checksums. Imports nothing, so listing them is instant."""

from __future__ import annotations

SETS = {  # name: what it is; its size, and what else there is to know
    "faithful": "eruptions of Old Faithful, duration and waiting time to the next (minutes); 272 x 2",
    "digits": "handwritten digits, 0 to 16; 1,797 x 64 (8 x 8 pixels); labels",
    "mnist5k": "MNIST training images, 500 of each digit, in [0, 1]; 5,000 x 784; labels",
    "iris": "measurements of iris flowers (cm); 150 x 4; labels",
    "wine": "chemical analysis of wines; 178 x 13; labels",
    "earthquakes": "earthquakes of magnitude 7 or more in the world, a count a year, 1900 to 2006; 1 x 107, one series",
    "nile": "annual flow of the Nile at Aswan (1e8 m³), 1871 to 1970; 1 x 100, one series",
    "breast_cancer": "measurements of cell nuclei; 569 x 30; labels",
    "chords": "series of triads in 24 keys, made up; 100 x 16 x 24, NaN beyond the 10 to 16 steps of a series",
    "mnist": "handwritten digits in [0, 1]; 60,000 x 784 (mnist:test 10,000); labels; downloaded",
    "fashion_mnist": "clothes in [0, 1]; 60,000 x 784 (fashion_mnist:test 10,000); labels; downloaded",
    "binarized_mnist": "MNIST, binarised once; 50,000 x 784 (:valid and :test 10,000); from ZOO_DATA_DIR",
    "frey_face": "frames of a face in [0, 1]; 1,965 x 560 (28 x 20 pixels); from ZOO_DATA_DIR",
    "jsb_chorales": "Bach's chorales as bits of 88 keys; 229 x 160 x 88 (:valid 76, :test 77), NaN beyond the end of a piece; "
    "downloaded",
}
SERIES = ("earthquakes", "nile")  # whose rows are the steps of one series, named by their year
PHOTOGRAPHS = ("frey_face",)  # whose large numbers are light; those of other images are ink
PARTS = {
    "mnist": ("train", "test"),
    "fashion_mnist": ("train", "test"),
    "binarized_mnist": ("train", "valid", "test"),
    "jsb_chorales": ("train", "valid", "test"),
}
# The others have no address whose bytes have the checksum below: they come from ZOO_DATA_DIR, or are checked by their content.
CHORALES = "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d/"
URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
DIGESTS = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  mnist/train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  mnist/train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  mnist/t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  mnist/t10k-labels-idx1-ubyte.gz
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  fashion_mnist/train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845  fashion_mnist/train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  fashion_mnist/t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5  fashion_mnist/t10k-labels-idx1-ubyte.gz
50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5  binarized_mnist/binarized_mnist.npz
265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64  frey_face/frey_rawface.mat
b2488e3f569010032f012a60a30e4b85cd046e8ace3f267ebcb8c6864cb6f0e7  jsb_chorales/jsb_chorales_quarter.npz
"""
SHA256 = {path: digest for digest, path in map(str.split, DIGESTS.strip().splitlines())}


def names() -> dict[str, str]:
    """Name → one line, for every named data set."""
    return dict(SETS)
