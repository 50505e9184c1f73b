"""Write scikit-learn's handwritten digits as PNG files, one folder for each class.

    python examples/digits.py OUT      makes OUT/train/0/0000.png … and OUT/test/…

1,797 scans of 8 x 8 pixels (Alpaydin and Kaynak, UCI repository); every fifth is for testing.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(out: str) -> None:
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number % 5 == 0 else "train"
        path = Path(out) / split / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(path)


if __name__ == "__main__":
    main(sys.argv[1])
