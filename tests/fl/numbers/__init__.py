"""Claims about numbers: blobs are the bytes the safetensors package writes, sums are exact, kernels agree bit
for bit with oracles made of Python integers and fractions."""
