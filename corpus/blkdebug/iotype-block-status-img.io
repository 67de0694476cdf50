@with -f raw
@stderr
alloc 4k 512
map
@img map -f raw blkdebug:rules:image
@img convert -f raw -O raw blkdebug:rules:image out
