@with -f raw
write -z 0 8k
write -z -u 16k 4k
read -P 0 0 8k
read -P 0 16k 4k
