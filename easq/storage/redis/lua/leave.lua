-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Closes connections and releases claims of the calling server, which stops, as many as one call may. Answers whether
-- there are more.

local S = stream.begin()
if not S then
  return {'gone'}
end
stream.leave_server(S, SERVER, false)
local more = work.more and 1 or 0
dispatch.all(S)
return stream.finish(S, 'ok', more)
