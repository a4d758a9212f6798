"""The digest of a zip file: other programs ignore it, and every changed byte is found."""

import io
import zipfile

from prune_fe.zip_seal import find_damage, seal


def plain() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", b"hello" * 50)
    return content.getvalue()


def test_a_sealed_file_is_the_same_zip_file() -> None:
    with zipfile.ZipFile(io.BytesIO(seal(plain()))) as archive:
        assert archive.read("a.txt") == b"hello" * 50
    assert find_damage(io.BytesIO(seal(plain()))) is None
    assert find_damage(io.BytesIO(plain())) is None


def test_every_changed_byte_of_a_sealed_file_is_found() -> None:
    whole = seal(plain())
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 4
        # In the word in front of the digest, a change hides the digest and harms nothing else.
        assert find_damage(io.BytesIO(content)) or place in range(len(whole) - 71, len(whole) - 64)


def test_the_checksums_of_a_file_without_a_seal_are_checked() -> None:
    content = plain().replace(b"hello", b"hellp")
    assert "'a.txt'" in str(find_damage(io.BytesIO(content)))
    assert find_damage(io.BytesIO(plain()[:-30]))
