"""From a data spec to training, evaluation and calibration samples, preprocessed and ready for a loader.

    splits = load_data("imagefolder:photos", input_shape=(3, 224, 224))

One file a kind of data; ``load`` holds the registry, one line an entry.
"""
