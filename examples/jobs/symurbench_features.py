"""Features for SyMuRBench (pip install symurbench), a benchmark of representations of MIDI.

Benchmark([Features(Embedder.from_pretrained("saas"))], tasks).run_all_tasks()
"""

from symurbench.feature_extractor import FeatureExtractor


class Features(FeatureExtractor):
    """What the benchmark asks for vectors; a file that cannot be read ends it with its name."""

    def __init__(self, embedder, name="CLaMP 3"):
        super().__init__(name)
        self.embedder = embedder

    def extract_features_from_file(self, file_path):
        return self._extract_features_from_files([file_path])[0]

    def _extract_features_from_files(self, file_paths):  # all at once, which is faster
        return self.embedder.embed_files(file_paths)
