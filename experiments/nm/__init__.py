"""N:M training of transformers: STE, SR-STE and progressive gradient flow."""
