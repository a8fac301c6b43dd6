"""Which waveform is it? A data set, a model, and the experiments in conf/."""
