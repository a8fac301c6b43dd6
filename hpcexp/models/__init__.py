"""Plain `nn.Module`s, reached by `_target_`; they know neither the configuration nor Lightning."""
