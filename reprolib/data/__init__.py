"""What is learnt from: data sets on the disk, verified by hash, whole on the device as uint8 tensors."""

# a name imported as itself is public, for type checkers, too
from reprolib.data.archives import FaceArchives as FaceArchives, write_tars as write_tars
from reprolib.data.datasets import (
    ImageDataset as ImageDataset,
    fetch as fetch,
    load as load,
    load_cifar10 as load_cifar10,
)
from reprolib.data.facebin import FacePairs as FacePairs, load_facebin as load_facebin, write_facebin as write_facebin
from reprolib.data.faces import FaceDataset as FaceDataset, load_orl as load_orl
from reprolib.data.faceimages import FaceImages as FaceImages, FaceStream as FaceStream
from reprolib.data.facesets import FaceRecords as FaceRecords, open_faces as open_faces, open_pairs as open_pairs
from reprolib.data.fetching import data_root as data_root
from reprolib.data.files import DataCorrupted as DataCorrupted, DataUnavailable as DataUnavailable
from reprolib.data.folders import FaceFolder as FaceFolder, FaceList as FaceList
from reprolib.data.lfw import LfwDataset as LfwDataset, lfw_pairs as lfw_pairs, load_lfw as load_lfw
from reprolib.data.lfw_folds import FacesFold as FacesFold, lfw_fold as lfw_fold, load_lfw_grey as load_lfw_grey
from reprolib.data.lmdb_sets import FaceLmdb as FaceLmdb, write_lmdb as write_lmdb
from reprolib.data.numbers import NumbersDataset as NumbersDataset, load_numbers as load_numbers
from reprolib.data.parquet import (
    FaceParquet as FaceParquet,
    load_parquet_pairs as load_parquet_pairs,
    write_parquet as write_parquet,
    write_parquet_pairs as write_parquet_pairs,
)
from reprolib.data.recordio import write_records as write_records
from reprolib.data.sampling import (
    PKSampler as PKSampler,
    balanced_subset as balanced_subset,
    class_split as class_split,
    genuine_impostor_pairs as genuine_impostor_pairs,
)
from reprolib.data.splits import (
    fold_split as fold_split,
    identity_split as identity_split,
    people_by_fold as people_by_fold,
)
