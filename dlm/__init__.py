"""dlm: autoregressive, masked-, uniform-diffusion and discrete-flow language models on equal terms."""
