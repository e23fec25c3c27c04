# Sourced by what serves with vLLM: all cores, one GiB of KV cache, no traffic but loopback, and the allocator and OpenMP
# library that vLLM's makers advise for CPUs. FOLDER is setup.sh's: vllm_env.sh FOLDER
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_HOST_IP=127.0.0.1
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-0-$(($(nproc) - 1))}
preload=
for library in /usr/lib/*-linux-gnu/libtcmalloc_minimal.so.4 "$1/vv/lib/libiomp5.so"; do
  if [ -e "$library" ]; then preload=$preload:$library; fi
done
export LD_PRELOAD=${preload#:}
