# The service, the demo and every other command of ttsnap. The embedded models need no GPU and no download.
#
#   docker compose up                      # both, of the embedded model: http://localhost:8000/docs, http://localhost:7860
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .    # with CUDA
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" '/src[demo,ocr,service]' \
    && install -d -o nobody /var/cache/huggingface /var/lib/ttsnap
VOLUME ["/var/cache/huggingface", "/var/lib/ttsnap"]
USER nobody
WORKDIR /var/lib/ttsnap
ENV HF_HOME=/var/cache/huggingface
EXPOSE 7860 8000
ENTRYPOINT ["ttsnap"]
CMD ["serve", "embedded", "--host", "0.0.0.0", "--state", "/var/lib/ttsnap/jobs"]
