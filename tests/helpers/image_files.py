"""Small image files for tests of readers."""

from PIL import Image


def save_image(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (value,) * 3).save(path)


def make_folder(root, counts, start=0):
    for name, n in counts.items():
        for i in range(n):
            save_image(root / name / f'{i}.png', start + i)
    return root
