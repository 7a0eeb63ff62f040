-- flags: allow-oom; after: stream entries groups members handout rules
-- The calling server stops: its connections are closed and its claims are back.

local S = rules.begin()
if not S then
  return {'gone'}
end
rules.leave_server(S, SERVER, false)
handout.dispatch_all(S)
return rules.finish(S, 'ok', 0)
