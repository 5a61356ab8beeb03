"""Lists and tables: columns by their usual names, labels as numbers or names, empty cells, parts, repeats."""

import logging
import os

import pytest
from image_files import save_image

from timm_lt.data import ListFileDataset, create_dataset, find_split, found

FILES = ('a/0.png', 'a/1.png', 'b c/2.png', '3.png')


@pytest.fixture
def images(tmp_path):
    for i, name in enumerate(FILES):
        save_image(tmp_path / 'images' / name, 10 * i)
    return tmp_path / 'images'


def write_table(file, header, rows):
    """A table of the type that the file name says."""
    if file.suffix == '.parquet':
        pyarrow = pytest.importorskip('pyarrow')
        from pyarrow import parquet
        columns = {name: list(column) for name, column in zip(header, zip(*rows))}
        parquet.write_table(pyarrow.table(columns), file)
    else:
        mark = '\t' if file.suffix == '.tsv' else ','
        lines = [header, *rows] if header else rows
        file.write_text(''.join(mark.join('' if v is None else str(v) for v in line) + '\n' for line in lines))
    return file


def read(file, images, **options):
    return create_dataset(f'list/{file}', images, **options)


@pytest.fixture(params=['csv', 'tsv', 'parquet'])
def file(request, tmp_path):
    return tmp_path / f'train.{request.param}'


@pytest.mark.parametrize('path,label', [
    ('path', 'label'), ('file', 'class'), ('image', 'category'), ('filename', 'target'), ('Image_Path', 'CLASS_NAME'),
])
def test_columns_are_found_by_their_usual_names(file, images, path, label):
    write_table(file, ('id', label, path), [(i, t, name) for i, (name, t) in enumerate(zip(FILES, (1, 0, 1, 2)))])
    data = read(file, images)
    assert data.targets.tolist() == [1, 0, 1, 2] and data.class_names is None
    assert [data[i][0].getpixel((0, 0))[0] for i in range(4)] == [0, 10, 20, 30]


def test_labels_that_are_names_are_numbered_in_natural_order(file, images):
    write_table(file, ('path', 'label'), zip(FILES, ('c10', 'c2', 'c10', 'A')))
    data = read(file, images)
    assert data.class_names == ['A', 'c2', 'c10'] and data.targets.tolist() == [2, 1, 2, 0]


def test_other_parts_follow_the_names_of_the_training_part(file, images):
    write_table(file, ('path', 'label'), zip(FILES, 'xyzz'))
    write_table(file.with_name(f'val{file.suffix}'), ('path', 'label'), [(FILES[3], 'z')])
    name = f'list/{file.with_name("{split}")}{file.suffix}'
    train = create_dataset(name, images)
    split = find_split(name, images, ('test', 'validation'))
    assert split == 'val' and create_dataset(name, images, split, class_names=train.class_names).targets.tolist() == [2]
    write_table(file.with_name(f'val{file.suffix}'), ('path', 'label'), [(FILES[3], 'new')])
    with pytest.raises(ValueError, match=r"classes \['new'\] that the training part lacks"):
        create_dataset(name, images, split, class_names=train.class_names)


def test_columns_can_be_named(file, images):
    write_table(file, ('one', 'two', 'label'), zip(FILES, 'xyxy', (0, 0, 0, 0)))
    assert read(file, images, input_key='one', target_key='two').class_names == ['x', 'y']
    with pytest.raises(ValueError, match="no column 'three'.*name the column of paths by input_key"):
        read(file, images, input_key='three')
    with pytest.raises(ValueError, match='no usual column of paths'):
        read(file, images)


def test_columns_that_are_not_clear_are_refused(file, images):
    write_table(file, ('path', 'label', 'category'), zip(FILES, (0, 1, 0, 1), 'xyxy'))
    with pytest.raises(ValueError, match=r"the columns \['label', 'category'\].*target_key \(--target-key\)"):
        read(file, images)
    assert read(file, images, target_key='category').class_names == ['x', 'y']


@pytest.mark.parametrize('column', [0, 1])
def test_rows_with_an_empty_cell_are_named_or_left_out(file, images, column, caplog):
    rows = [list(row) for row in zip(FILES, 'xyxy')]
    rows[2][column] = None
    write_table(file, ('path', 'label'), rows)
    place = 'row 2' if file.suffix == '.parquet' else 'line 4'
    with pytest.raises(ValueError, match=f"{place}: 1 of 4 are rows without .*bad_images='skip'"):
        read(file, images)
    data = read(file, images, bad_images='skip')
    assert data.targets.tolist() == [0, 1, 1]
    assert data.found.left_out[(found.NO_PATH, found.NO_LABEL)[column]].examples == [place]
    assert caplog.records[-1].levelno == logging.WARNING


def test_class_map_numbers_names(file, images):
    write_table(file, ('path', 'label'), zip(FILES, 'xyxy'))
    assert read(file, images, class_map=['y', 'x']).targets.tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match='classes that the class map lacks'):
        read(file, images, class_map=['y'])
    assert read(file, images, class_map=['y'], bad_images='skip').targets.tolist() == [0, 0]


def test_column_of_parts_divides_a_table(file, images):
    write_table(file, ('path', 'label', 'split'), zip(FILES, 'xyxy', ('train', 'train', 'Val', 'test')))
    assert len(read(file, images)) == 2
    assert find_split(f'list/{file}', images, ('validation',)) == 'Val'
    data = read(file, images, split='validation', class_names=['x', 'y'])
    assert data.targets.tolist() == [0] and data[0][0].getpixel((0, 0))[0] == 20
    with pytest.raises(ValueError, match="no part 'extra', only"):
        read(file, images, split='extra')


def test_images_listed_twice_are_pointed_out(file, images, caplog):
    write_table(file, ('path', 'label'), [(FILES[0], 0), (FILES[0], 0), (FILES[1], 0), (FILES[1], 1)])
    assert len(read(file, images)) == 4
    assert '2 images are listed more than once, e.g. a/0.png; 1 of them with different labels' in caplog.text


def test_digits_in_text_columns_of_parquet_are_names(images, tmp_path):
    file = write_table(tmp_path / 't.parquet', ('path', 'label'), zip(FILES, ('7', '10', '7', '9')))
    assert read(file, images).class_names == ['7', '9', '10']


def test_parquet_that_holds_the_images_points_to_its_reader(images, tmp_path):
    file = write_table(tmp_path / 't.parquet', ('image', 'label'), [(b'x', 0)])
    with pytest.raises(ValueError, match="'hfds/"):
        read(file, images)


@pytest.mark.parametrize('text', [
    'a/0.png,0\nb c/2.png,1\n', 'path;label\na/0.png;0\nb c/2.png;1\n',
    '\ufeffpath,label\r\na/0.png,0\r\n"b c/2.png",1',
    'path , label\na/0.png , 0\nb c/2.png, 1.0\n\n',
])
def test_usual_forms_of_csv_are_read(images, tmp_path, text):
    (tmp_path / 't.csv').write_bytes(text.encode())
    data = read(tmp_path / 't.csv', images)
    assert data.targets.tolist() == [0, 1] and data[1][0].getpixel((0, 0))[0] == 20


@pytest.mark.parametrize('text,match', [
    ('path,label\na/0.png,0\na/1.png,cat\n3.png,1\n',
     r'mixes labels that are numbers \(2\) and names \(1\).*in line 3'),
    ('path,label\na/0.png,0\na/1.png\n', 'line 3: expected 2 cells'),
    ('path,label\na/0.png,-100\n', 'line 2: the label must be a whole number >= 0'),
    ('path,label,label\na/0.png,0,0\n', 'two columns of one name'),
    ('', 'names no image'), ('path,label\n', 'names no image'),
])
def test_tables_without_sense_are_refused_with_their_line(images, tmp_path, text, match):
    (tmp_path / 't.csv').write_text(text)
    with pytest.raises(ValueError, match=match):
        read(tmp_path / 't.csv', images)


def test_text_lists_take_names_with_a_class_map_only(images, tmp_path):
    (tmp_path / 't.txt').write_text('a/0.png cat\nb c/2.png dog\n')
    with pytest.raises(ValueError, match=r"line 1: the label must be a whole number >= 0, got 'cat'.*--class-map"):
        read(tmp_path / 't.txt', images)
    data = read(tmp_path / 't.txt', images, class_map={'dog': 0, 'cat': 1})
    assert data.class_names == ['dog', 'cat'] and data.targets.tolist() == [1, 0]


@pytest.mark.parametrize('suffix,line', [('txt', b'%s 0\n'), ('csv', b'path,label\n%s,0\n')])
def test_paths_that_are_not_utf8_are_read(images, tmp_path, suffix, line):
    os.rename(os.fsencode(images / 'a' / '0.png'), os.fsencode(images) + b'/Gr\xf6\xdfe.png')
    (tmp_path / f't.{suffix}').write_bytes(line % b'Gr\xf6\xdfe.png')
    data = ListFileDataset(tmp_path / f't.{suffix}', images)
    assert data[0][0].size == (8, 8) and data.filename(0) == os.fsdecode(b'Gr\xf6\xdfe.png')
