@stderr
@options driver=blkdebug,image.filename=image,set-state.0.new_state=1
read 0 512
