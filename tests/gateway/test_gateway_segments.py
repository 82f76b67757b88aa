"""Segments give back what was written, in order and whole, wherever they end."""

import os

import pytest
from captures import capture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doorstep.gateway.segments import Reader, Writer

quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
BODIES = st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=8)


def written(folder, bodies):
    made = [capture(number, request=request, response=response) for number, (request, response) in enumerate(bodies)]
    writer = Writer(folder, "seg")
    for one in made:
        writer.append(one)
    writer.close()
    (path,) = folder.iterdir()
    return path, made


def read(path, most):
    reader, found = Reader.beside(path), []
    while batch := reader.read(most):
        found += batch
    reader.delete()
    return found


@quick
@given(bodies=BODIES, most=st.integers(20, 2000))
def test_what_is_written_is_read_in_batches_of_any_size(bodies, most, tmp_path_factory):
    path, made = written(tmp_path_factory.mktemp("segments"), bodies)
    assert read(path, most) == made


@quick
@given(bodies=BODIES, data=st.data())
def test_a_segment_that_ends_anywhere_holds_the_whole_frames_before(bodies, data, tmp_path_factory):
    path, made = written(tmp_path_factory.mktemp("segments"), bodies)
    os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
    found = read(path, 500)
    assert found == made[: len(found)]


def test_a_frame_that_the_disk_takes_in_part_leaves_nothing(tmp_path, monkeypatch):
    writer = Writer(tmp_path, "seg")
    writer.append(capture(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda file, parts: os.write(file, b"".join(parts)[:50]))
        with pytest.raises(OSError, match="only 50 of"):
            writer.append(capture(1))
    writer.append(capture(2))
    writer.close()
    (path,) = tmp_path.iterdir()
    assert [one.call_id for one in read(path, 500)] == ["call_0000", "call_0002"]


def test_a_segment_has_an_owner_as_long_as_somebody_writes_or_reads_it(tmp_path):
    writer = Writer(tmp_path, "seg")
    writer.append(capture())
    (path,) = tmp_path.iterdir()
    assert Reader.alone(path) is None
    reader = Reader.beside(path)
    writer.close()
    assert Reader.alone(path) is None
    os.close(reader._file)
    assert Reader.alone(path) is not None
