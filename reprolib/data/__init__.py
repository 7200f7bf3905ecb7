"""What is learnt from: data sets on the disk, verified by hash, whole on the device as uint8 tensors."""

from reprolib.data.datasets import ImageDataset, fetch, load, load_cifar10
from reprolib.data.facebin import FacePairs, load_facebin, write_facebin
from reprolib.data.faces import FaceDataset, load_orl
from reprolib.data.facesets import FaceFolder, FaceImages, FaceRecords, open_faces
from reprolib.data.fetching import data_root
from reprolib.data.files import DataCorrupted, DataUnavailable
from reprolib.data.lfw import LfwDataset, lfw_pairs, load_lfw
from reprolib.data.recordio import write_records
from reprolib.data.sampling import CoupleSampler, PKSampler, balanced_subset, class_split, genuine_impostor_pairs
from reprolib.data.splits import fold_split, people_by_fold, people_outside_pairs, rotation_split, rotations

__all__ = [
    "CoupleSampler",
    "DataCorrupted",
    "DataUnavailable",
    "FaceDataset",
    "FaceFolder",
    "FaceImages",
    "FacePairs",
    "FaceRecords",
    "ImageDataset",
    "LfwDataset",
    "PKSampler",
    "balanced_subset",
    "class_split",
    "data_root",
    "fetch",
    "fold_split",
    "genuine_impostor_pairs",
    "lfw_pairs",
    "load",
    "load_cifar10",
    "load_facebin",
    "load_lfw",
    "load_orl",
    "open_faces",
    "people_by_fold",
    "people_outside_pairs",
    "rotation_split",
    "rotations",
    "write_facebin",
    "write_records",
]
