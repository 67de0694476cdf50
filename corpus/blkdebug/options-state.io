@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.set-state.0.event=write_aio,file.set-state.0.state=1,file.set-state.0.new_state=3
read 0 512
write 0 512
read 0 512
