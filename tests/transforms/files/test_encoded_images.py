import pytest

from transforms.files import encoded_images, image_folders


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([1] * 10, [4, 4, 2]),
        ([image_folders.NO_FILE] * 5, [4, 1]),
        ([2**23] * 9, [4, 4, 1]),
        ([2**24] * 5, [2, 2, 1]),
        ([2**28, 1, 1, 2**28], [1, 2, 1]),
    ],
)
def test_few_large_images_are_together(sizes, parts):
    found = [encoded_images.EncodedImage(str(number), None, size) for number, size in enumerate(sizes)]
    cut = list(encoded_images._parts(iter(found), 4))
    assert [len(part) for part in cut] == parts
    assert [image for part in cut for image in part] == found
