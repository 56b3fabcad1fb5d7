"""The samples of a split, whatever it is stored as: folders, an official layout, volumes, tables, metadata lines."""

from __future__ import annotations

from pathlib import Path

from setr_fast.data.faults import Fault, FaultError, some
from setr_fast.data.formats import arrays, rows
from setr_fast.data.layouts import metadata
from setr_fast.data.layouts.folder import Sample, Scan, by_stem, scan_split
from setr_fast.data.layouts.known import Files, data_folder, known_set
from setr_fast.data.layouts.lists import key_of, split_name
from setr_fast.data.layouts.patterns import scan_files, serves
from setr_fast.data.layouts.splits import find_splits, has_masks
from setr_fast.data.options import DataConfig
from setr_fast.errors import ConfigError


def data_root(config: DataConfig) -> Path:
    """Return the folder that holds the splits: the root, or what a known set's archive unpacks to below it."""
    assert config.root is not None
    return config.root if config.dataset is None else data_folder(config.root, known_set(config.dataset).below)


def scan(config: DataConfig, split: str, flag: str = "") -> Scan:
    """Return the samples of a split together with all that is wrong with its names. Opens no picture.

    ``flag``: the option that named the split, for the message if it is not there.
    """
    root = data_root(config)
    files = _official(config, split)
    if files is not None:
        return _parts(scan_files(files, root, split, extra=config.channels > 3))
    if config.dataset is not None and known_set(config.dataset).files:
        return Scan(faults=[_missing(config, split)])
    if tables := rows.table_files(root, split):
        return _rows(config, tables)
    if config.image_column is not None or config.label_column is not None:
        raise ConfigError(f"data: image_column and label_column must name columns of a table, got none in {root}")
    if (lines := metadata.metadata_file(root, split)) is not None:
        return metadata.scan_metadata(lines, root)
    plain = config.channels != 3 and config.extra is None
    found = scan_split(root, split, config.mask_suffix, config.picture_suffix, flag, arrays=plain)
    if config.dataset is not None and not found.samples:
        if root.is_dir() and not has_masks(root, split):
            return Scan(faults=[_elsewhere(config, split)])
        if known_set(config.dataset).prepared:
            found.faults = [Fault(fault.path, fault.what, _remedy(config)) for fault in found.faults[:1]]
    return found if config.extra is None else _with_extra(found, root, split, config.extra)


def samples_of(config: DataConfig, split: str) -> list[Sample]:
    """Return the samples of a split, each with its mask, ordered by name or as the split list has them.

    Raises: FaultError if the split is missing or empty, or any of its samples is incomplete or ambiguous.
    """
    found = scan(config, split)
    if found.faults:
        raise FaultError(found.faults[0], len(found.faults) - 1, data_root(config))
    return found.samples


def splits_there(config: DataConfig) -> list[str]:
    """Return the names of the splits that a data folder holds, also where masks are missing; train and val first."""
    root = data_root(config)
    if config.dataset is not None and known_set(config.dataset).files:
        return [split for split in known_set(config.dataset).splits if _official(config, split) is not None]
    others = rows.table_splits(root) + metadata.metadata_splits(root)
    usual = (config.train_split, config.val_split)
    if others:
        return sorted(set(others), key=lambda name: (name not in usual, name))
    wanted = None if config.dataset is None else {*known_set(config.dataset).splits, *usual}
    return [split for split in find_splits(root) if wanted is None or split in wanted]


def holds(config: DataConfig, split: str) -> bool:
    """Return whether a split has masks at all; test sets often come without."""
    root = data_root(config)
    if config.dataset is not None and known_set(config.dataset).files:
        return _official(config, split) is not None
    tables = rows.table_files(root, split)
    if tables:
        return rows.has_labels(tables[0], (config.image_column, config.label_column))
    return metadata.metadata_file(root, split) is not None or has_masks(root, split)


def _official(config: DataConfig, split: str) -> Files | None:
    if config.dataset is None:
        return None
    root = data_root(config)
    return next((files for files in known_set(config.dataset).files if serves(files, root, split)), None)


def _missing(config: DataConfig, split: str) -> Fault:
    assert config.dataset is not None
    known = known_set(config.dataset)
    if split not in known.splits:
        rule = f"split of {config.dataset} must be {' or '.join(known.splits)}, got '{split}'"
        return Fault(data_root(config), rule, "name one of them; see `setr-fast data list`")
    there = [files for files in known.files if not files.splits or split in files.splits]
    lists = [files.listing.format(split=split) for files in there if files.listing]
    missing = next((name for name in lists if not (data_root(config) / name).is_file()), None)
    looked = " or ".join(dict.fromkeys(files.picture.format(split=split) for files in there))
    got = "no such pictures" if missing is None else f"no list {missing}"
    rule = f"split '{split}' of {config.dataset} must lie in {looked}, got {got}"
    return Fault(data_root(config), rule, _remedy(config))


def _elsewhere(config: DataConfig, split: str) -> Fault:
    """Return the fault of a known set in one of the general layouts, of whose split there is nothing."""
    assert config.dataset is not None
    root, known = data_root(config), known_set(config.dataset)
    folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    got = some(sorted(folders)) or "no folders"
    rule = f"split '{split}' of {config.dataset} must lie as {known.layout}, got {got}"
    return Fault(root, rule, _remedy(config))


def _remedy(config: DataConfig) -> str:
    assert config.dataset is not None
    if known_set(config.dataset).prepared:
        return f"run `setr-fast data prepare {config.dataset} {config.root}`, or check --data.root"
    return "check --data.root, or unpack the archives again"


def _parts(found: Scan) -> Scan:
    """Put the slices of every volume in its place."""
    samples = []
    for sample in found.samples:
        if sample.mask != sample.image:
            samples.append(sample)
            continue
        try:
            count = arrays.part_count(sample.image)
        except FaultError as error:
            found.faults.append(error.fault)
            continue
        stem = sample.name.removesuffix(".npy")
        names = [stem] if count == 1 else [f"{stem}_slice{part:03d}" for part in range(count)]
        samples += [Sample(name, sample.image, sample.image, None, part) for part, name in enumerate(names)]
    found.samples = samples
    return found


def _rows(config: DataConfig, tables: list[Path]) -> Scan:
    found = Scan()
    columns = config.image_column, config.label_column
    for path in tables:
        try:
            names = rows.row_names(path, columns)
        except FaultError as error:
            found.faults.append(error.fault)
            continue
        found.samples += [Sample(name, path, path, None, row) for row, name in enumerate(names)]
    return found


def _with_extra(found: Scan, root: Path, split: str, extra: str) -> Scan:
    """Give every sample the file of its stem in the folder of further channels."""
    if not found.samples:
        return found
    images = found.samples[0].image.parent
    folders = [images.parent / extra, root / extra / split, root / split / extra]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        looked = " or ".join(dict.fromkeys(str(folder.relative_to(root)) for folder in folders))
        rule = f"further channels must lie in {looked}, got no such folder"
        found.faults.append(Fault(root, rule, "add it, or correct --data.extra"))
        return found
    stems = by_stem(folder, nested=False, arrays=True)
    samples = []
    for sample in found.samples:
        files = stems.get(key_of(sample.name), [])
        if len(files) == 1:
            samples.append(Sample(sample.name, sample.image, sample.mask, files[0]))
            continue
        got = "none" if not files else " and ".join(split_name(path.name)[1] for path in files)
        rule = f"picture must have one file '{sample.name}' in {folder}, got {got}"
        found.faults.append(Fault(sample.image, rule, "add it, or move the picture away"))
    found.samples = samples
    return found
